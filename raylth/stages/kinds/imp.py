"""Stage `imp`: one round of iterative magnitude pruning with fine-tuning (paper, section 3).

A round of the trunk prunes a fraction of the weights still alive; a landing round prunes what lands exactly on its
sparsity. Each round is a stage of its own, so every sparsity shares the trunk and a stopped trunk resumes where it was.
"""

from raylth.core.masks import full_mask, num_alive
from raylth.core.pruning import num_landing_alive, prune_global_magnitude
from raylth.stages.context import Context
from raylth.stages.kind import StageKind
from raylth.stages.network_rows import network_rows
from raylth.stages.settings import ImpSettings
from raylth.stages.stage import Stage
from raylth.stages.training import Trainee, load_mask, load_network, masked_trainee

__all__ = ["KIND", "imp"]


def imp(stage: Stage[ImpSettings], context: Context) -> Trainee:
    """Prune the parent network by one round, then fine-tune it under the new mask."""
    settings, parent = stage.settings, stage.parents["network"]
    network = load_network(settings.model, context, parent)
    is_first = "mask" not in context.store.files(parent)  # the parent is a dense network
    mask = full_mask(network, prune_shortcuts=settings.prune_shortcuts) if is_first else load_mask(context, parent)
    amount = settings.amount
    if amount.fraction is not None:
        pruned = prune_global_magnitude(network.state_dict(), mask, fraction=float(amount.fraction))
    else:
        assert amount.sparsity is not None
        target = num_landing_alive(sum(alive.numel() for alive in mask.values()), amount.sparsity)
        pruned = prune_global_magnitude(network.state_dict(), mask, count=num_alive(mask) - target)
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
