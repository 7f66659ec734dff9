"""What a way of finding A's mask is, and the table of them. A sweep file names one in `mask.finder`.

A finder of one's own is one more object of `MaskFinder`, named by its import path (`package.module:object`) or by an entry
point of the group `raylth.finders`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from raylth.common.registry import Registry, UnknownName
from raylth.core.masks import Mask
from raylth.core.pruning.structure import UNSTRUCTURED, Structure
from raylth.core.pruning.structured import prune_structured
from raylth.core.pruning.units import UnitGroup

__all__ = ["FINDERS", "ITERATIVE", "Batches", "FinderInputs", "MaskFinder", "finder_summary"]

ITERATIVE = "imp"  # which is a chain of trainings, so that every sparsity shares their trunk


class Batches(Protocol):
    """Yields (inputs, labels) of all training samples, or of so many for each class, classes in proportion."""

    def __call__(self, per_class: int | None = None) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the batches."""


@dataclass(frozen=True)
class FinderInputs:
    """What a finder may read besides the network."""

    mask: Mask  # prunable weight -> bool tensor of its shape, all True
    num_alive: int  # exactly so many entries of the mask it returns have to be True
    batches: "Batches"  # called, yields (inputs, labels) of training samples, where it reads them
    seed: int  # for random numbers, where it `needs_seed`
    structure: Structure = UNSTRUCTURED  # the pattern of the mask that it returns, where it `has_structure`
    units: Callable[[], Sequence[UnitGroup]] = tuple  # returns those that the pattern `units` may remove


@dataclass(frozen=True)
class MaskFinder:
    """One way of finding which weights of a network stay.

    `find(network, inputs)` returns a mask, a bool tensor for each entry of `inputs.mask`, True where the weight is alive.
    It is called once for each sparsity, and must not change the network, which is in evaluation mode.

    Raises TypeError or ValueError for a field that is none of these.
    """

    find: Callable[[nn.Module, FinderInputs], Mask]
    summary: str  # what it keeps: for model cards
    network: Literal["trained", "initial"] = "trained"  # theta(T) or theta(0)
    reads_samples: bool = False  # whether it may read `inputs.batches()`
    needs_seed: bool = False
    has_structure: bool = False  # whether its masks have the pattern `inputs.structure`

    def __post_init__(self) -> None:
        if not callable(self.find):
            raise TypeError(f"find: should be a function, found {self.find!r:.60}")
        if not isinstance(self.summary, str):
            raise TypeError(f"summary: should be a string, found {self.summary!r:.60}")
        if self.network not in ("trained", "initial"):
            raise ValueError(f"network: should be 'trained' or 'initial', found {self.network!r}")


FINDERS: Registry[MaskFinder] = Registry("mask finder", group="raylth.finders")


def finder_summary(name: str) -> str:
    """Return what a finder keeps, as it says itself; "" where its module is not on this machine."""
    try:
        found = FINDERS[name]
    except UnknownName:
        return ""
    return found.summary if isinstance(found, MaskFinder) else ""


def _one_shot(network: nn.Module, inputs: FinderInputs) -> Mask:
    units = inputs.units() if inputs.structure.pattern == "units" else ()
    state = network.state_dict()
    return prune_structured(state, inputs.mask, inputs.structure, num_alive=inputs.num_alive, units=units)


FINDERS.register(ITERATIVE)(MaskFinder(_one_shot, "iterative magnitude pruning (paper, section 3)", has_structure=True))
FINDERS.register("oneshot")(
    MaskFinder(_one_shot, "the smallest magnitudes of the trained network, pruned at once", has_structure=True)
)
