"""What a way of finding A's mask is, and the table of them. A sweep file names them in `mask.finder`.

A finder of one's own is one more object of `MaskFinder` or `DynamicFinder`, named by its import path
(`package.module:object`) or by an entry point of the group `raylth.finders`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor, nn

from raylth.common.registry import Registry, UnknownName
from raylth.core.masks import Mask
from raylth.core.pruning.structure import UNSTRUCTURED, Structure
from raylth.core.pruning.structured import prune_structured
from raylth.core.pruning.units import UnitGroup

__all__ = [
    "FINDERS",
    "ITERATIVE",
    "Batches",
    "DynamicFinder",
    "FinderInputs",
    "MaskFinder",
    "StartInputs",
    "UpdateInputs",
    "finder_summary",
    "is_dynamic",
]

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


@dataclass(frozen=True)
class StartInputs:
    """What decides the mask that a training with changing masks starts with."""

    mask: Mask  # prunable weight -> bool tensor of its shape, all True
    num_alive: int  # entries of the mask that have to be True at the end of the training
    seed: int  # for random numbers


@dataclass(frozen=True)
class UpdateInputs:
    """What a change of the mask may read; nothing of it may be changed."""

    weights: dict[str, Tensor]  # the prunable weights as they are; pruned ones are 0
    gradients: dict[str, Tensor]  # of this step's loss, also with respect to the pruned weights
    mask: Mask
    num_alive: int  # entries of the mask that have to be True at the end of the training
    number: int  # of this change, from 1
    count: int  # of changes in the whole training
    progress: float  # share of the steps in which masks change that is over, in (0, 1)
    fraction: float  # `mask.updates.fraction`
    seed: int  # for random numbers; another one for each change


@dataclass(frozen=True)
class DynamicFinder:
    """One way of finding the mask of a network while it is trained from its initialisation.

    `start(inputs)` returns the mask before the first step, `update(inputs)` the mask from then on; after the last of
    `inputs.count` changes exactly `inputs.num_alive` entries have to be True. A weight that grows starts at 0, without
    momentum. `every`, `until` and `fraction` are the finder's own values of the settings in `mask.updates`.

    Raises TypeError or ValueError for a field that is none of these.
    """

    start: Callable[[StartInputs], Mask]
    update: Callable[[UpdateInputs], Mask]
    summary: str  # what it keeps: for model cards
    every: int | None = None  # steps between two changes; None: those of an epoch
    until: float = 1.0  # share of the training in which the mask changes
    fraction: float = 0.3  # of each layer's weights that a change replaces, for finders that do
    replaces_step: bool = False  # whether the weights stay where they are in the step at which the mask changes
    has_structure: ClassVar[bool] = False  # its masks have no pattern

    def __post_init__(self) -> None:
        for name in ("start", "update"):
            if not callable(found := getattr(self, name)):
                raise TypeError(f"{name}: should be a function, found {found!r:.60}")
        if not isinstance(self.summary, str):
            raise TypeError(f"summary: should be a string, found {self.summary!r:.60}")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every: should be at least 1 step, found {self.every!r}")
        for name, found in (("until", self.until), ("fraction", self.fraction)):
            if not 0 < found <= 1:
                raise ValueError(f"{name}: should be above 0 and at most 1, found {found!r}")


FINDERS: Registry[MaskFinder | DynamicFinder] = Registry("mask finder", group="raylth.finders")


def is_dynamic(name: str | None) -> bool:
    """Whether a finder trains a network of its own to find the mask; False for None, which is masks from files."""
    return name is not None and isinstance(FINDERS[name], DynamicFinder)


def finder_summary(name: str) -> str:
    """Return what a finder keeps, as it says itself; "" where its module is not on this machine."""
    try:
        found = FINDERS[name]
    except UnknownName:
        return ""
    return found.summary if isinstance(found, MaskFinder | DynamicFinder) else ""


def _one_shot(network: nn.Module, inputs: FinderInputs) -> Mask:
    units = inputs.units() if inputs.structure.pattern == "units" else ()
    state = network.state_dict()
    return prune_structured(state, inputs.mask, inputs.structure, num_alive=inputs.num_alive, units=units)


FINDERS.register(ITERATIVE)(MaskFinder(_one_shot, "iterative magnitude pruning (paper, section 3)", has_structure=True))
FINDERS.register("oneshot")(
    MaskFinder(_one_shot, "the smallest magnitudes of the trained network, pruned at once", has_structure=True)
)
