"""Which weights are pruned, and masks in the form of `torch.nn.utils.prune`."""

from raylth.core.pruning import at_initialisation, while_training  # they file their finders
from raylth.core.pruning.finder import FINDERS, DynamicFinder, FinderInputs, MaskFinder, StartInputs, UpdateInputs
from raylth.core.pruning.magnitude import num_landing_alive, prune_global_magnitude, trunk_counts
from raylth.core.pruning.torch_prune import from_torch_prune, to_torch_prune

__all__ = [
    "FINDERS",
    "DynamicFinder",
    "FinderInputs",
    "MaskFinder",
    "StartInputs",
    "UpdateInputs",
    "at_initialisation",
    "from_torch_prune",
    "num_landing_alive",
    "prune_global_magnitude",
    "to_torch_prune",
    "trunk_counts",
    "while_training",
]
