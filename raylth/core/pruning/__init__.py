"""Which weights are pruned, and masks in the form of `torch.nn.utils.prune`."""

from raylth.core.pruning import at_initialisation, while_training  # they file their finders
from raylth.core.pruning.compaction import compact
from raylth.core.pruning.finder import FINDERS, DynamicFinder, FinderInputs, MaskFinder, StartInputs, UpdateInputs
from raylth.core.pruning.magnitude import num_landing_alive, prune_global_magnitude, trunk_counts
from raylth.core.pruning.structure import UNSTRUCTURED, Structure, keeps, shuffle_structured
from raylth.core.pruning.structured import landing_alive, nearest_alive, prune_structured
from raylth.core.pruning.torch_prune import from_torch_prune, to_torch_prune
from raylth.core.pruning.units import UnitGroup, removable_units, unit_groups

__all__ = [
    "FINDERS",
    "UNSTRUCTURED",
    "DynamicFinder",
    "FinderInputs",
    "MaskFinder",
    "StartInputs",
    "Structure",
    "UnitGroup",
    "UpdateInputs",
    "at_initialisation",
    "compact",
    "from_torch_prune",
    "keeps",
    "landing_alive",
    "nearest_alive",
    "num_landing_alive",
    "prune_global_magnitude",
    "prune_structured",
    "removable_units",
    "shuffle_structured",
    "to_torch_prune",
    "trunk_counts",
    "unit_groups",
    "while_training",
]
