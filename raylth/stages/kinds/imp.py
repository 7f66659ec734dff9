"""Stage `imp`: one round of iterative magnitude pruning with fine-tuning (paper, section 3).

A round of the trunk prunes a fraction of the weights still alive; a landing round prunes what lands exactly on its
sparsity. Each round is a stage of its own, so every sparsity shares the trunk and a stopped trunk resumes where it was.
"""

from raylth.core.masks import full_mask, num_alive
from raylth.core.pruning import UNSTRUCTURED, landing_alive, nearest_alive, prune_structured
from raylth.stages.context import Context
from raylth.stages.kind import StageKind
from raylth.stages.network_rows import network_rows
from raylth.stages.settings import ImpSettings, StructureSettings
from raylth.stages.stage import Stage
from raylth.stages.symmetry import structure_units
from raylth.stages.training import Trainee, load_mask, load_network, masked_trainee

__all__ = ["KIND", "imp"]


def imp(stage: Stage[ImpSettings], context: Context) -> Trainee:
    """Prune the parent network by one round, then fine-tune it under the new mask."""
    settings, parent = stage.settings, stage.parents["network"]
    network = load_network(settings.model, context, parent)
    is_first = "mask" not in context.store.files(parent)  # the parent is a dense network
    mask = full_mask(network, prune_shortcuts=settings.prune_shortcuts) if is_first else load_mask(context, parent)
    amount = settings.amount
    found = settings.structure or StructureSettings(pattern=UNSTRUCTURED.pattern)
    structure, units = found.structure, structure_units(settings.model, network, context, found)
    shapes = {name: alive.shape for name, alive in mask.items()}
    if amount.fraction is not None:
        before = num_alive(mask)
        target = nearest_alive(structure, shapes, before - round(float(amount.fraction) * before), units)
    else:
        assert amount.sparsity is not None
        target = landing_alive(structure, shapes, amount.sparsity, units)
    pruned = prune_structured(network.state_dict(), mask, structure, num_alive=target, units=units)
    return masked_trainee(stage, network, pruned)


KIND = StageKind(
    name="imp",
    settings=ImpSettings,
    rank=20,
    prepare=imp,
    rows=network_rows,
    num_bytes=lambda stage, network: network.weights + network.mask,
    feeds_arms=True,
)
