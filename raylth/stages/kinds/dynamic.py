"""Stage `dynamic`: a seed -> a network trained while its finder changes its mask, and the mask: gmp, set, rigl, one's own."""

from typing import Any

from raylth.core.masks import as_mask, full_mask, num_alive
from raylth.core.models import check_code
from raylth.core.pruning import FINDERS, DynamicFinder, StartInputs, num_landing_alive
from raylth.core.training.dynamic import MaskUpdates
from raylth.core.training.schedule import steps_per_epoch
from raylth.stages.context import Context
from raylth.stages.kind import StageKind
from raylth.stages.network_rows import network_rows
from raylth.stages.settings import DynamicSettings
from raylth.stages.stage import Artefact, Stage
from raylth.stages.training import Trainee, keep_checkpoints, masked_trainee, new_network

__all__ = ["KIND", "dynamic"]


def dynamic(stage: Stage[DynamicSettings], context: Context) -> Trainee:
    """Train a network from its initialisation under a mask that its finder changes, and publish both.

    The weights at each checkpoint epoch are published when it gets there; checkpoint "0" is the initialisation, with all its
    weights. The training ends with ValueError where the finder has not kept as many weights as the sparsity asks for.
    """
    settings, finder = stage.settings, FINDERS[stage.settings.finder]
    if not isinstance(finder, DynamicFinder):
        raise RuntimeError(f"mask finder {settings.finder!r} is not the same code here as where the sweep was planned")
    check_code("mask finder", settings.finder, finder.update, settings.code)
    network = new_network(settings.model, settings.init_seed, context.device)
    everything = full_mask(network, prune_shortcuts=settings.prune_shortcuts)
    wanted = num_landing_alive(num_alive(everything), settings.sparsity)
    inputs = StartInputs({name: alive.clone() for name, alive in everything.items()}, wanted, settings.finder_seed)
    whose = f"mask finder {settings.finder}"
    mask = as_mask(finder.start(inputs), everything, whose)
    steps = settings.recipe.epochs * steps_per_epoch(
        len(context.train), settings.recipe.batch_size, drop_last=settings.recipe.drop_last
    )
    updates = MaskUpdates(
        finder,
        settings.finder,
        every=settings.every,
        until=round(settings.until * steps),
        num_alive=wanted,
        fraction=settings.fraction,
        seed=settings.finder_seed,
    )
    trainee = masked_trainee(stage, network, mask)

    def finish(metrics: dict[str, Any]) -> dict[str, Artefact]:
        if (kept := num_alive(mask)) != wanted:
            raise ValueError(f"{whose}: in the end {kept:,} weights are alive, and inputs.num_alive is {wanted:,}")
        return trainee.finish(metrics)

    return keep_checkpoints(Trainee(stage, network, finish, mask, updates=updates), context)


KIND = StageKind(
    name="dynamic",
    settings=DynamicSettings,
    rank=15,
    prepare=dynamic,
    rows=network_rows,
    num_bytes=lambda stage, network: network.weights * len(stage.produces) + network.mask,
    feeds_arms=True,
)
