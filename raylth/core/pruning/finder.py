"""What a way of finding A's mask is, and the table of them. A sweep file names one in `mask.finder`.

A finder of one's own is one more object of `MaskFinder`, named by its import path (`package.module:object`) or by an entry
point of the group `raylth.finders`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from raylth.common.registry import Registry
from raylth.core.masks import Mask, num_alive
from raylth.core.pruning.magnitude import prune_global_magnitude

__all__ = ["FINDERS", "ITERATIVE", "FinderInputs", "MaskFinder"]

ITERATIVE = "imp"  # which is a chain of trainings, so that every sparsity shares their trunk


@dataclass(frozen=True)
class FinderInputs:
    """What a finder may read besides the network."""

    mask: Mask  # prunable weight -> bool tensor of its shape, all True
    num_alive: int  # exactly so many entries of the mask it returns have to be True
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]  # (inputs, labels) of the training samples, where it reads them
    seed: int  # for random numbers, where it `needs_seed`


@dataclass(frozen=True)
class MaskFinder:
    """One way of finding which weights of a network stay.

    `find(network, inputs)` returns a mask, a bool tensor for each entry of `inputs.mask`, True where the weight is alive.
    It is called once for each sparsity, and must not change the network, which is in evaluation mode.
    """

    find: Callable[[nn.Module, FinderInputs], Mask]
    summary: str
    network: Literal["trained", "initial"] = "trained"  # theta(T) or theta(0)
    reads_samples: bool = False
    needs_seed: bool = False


FINDERS: Registry[MaskFinder] = Registry("mask finder", group="raylth.finders")


def _one_shot(network: nn.Module, inputs: FinderInputs) -> Mask:
    return prune_global_magnitude(network.state_dict(), inputs.mask, count=num_alive(inputs.mask) - inputs.num_alive)


FINDERS.register(ITERATIVE)(MaskFinder(_one_shot, "iterative magnitude pruning (paper, section 3)"))
FINDERS.register("oneshot")(MaskFinder(_one_shot, "the smallest magnitudes of the trained network, pruned at once"))
