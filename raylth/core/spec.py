"""The permutation symmetry of a network as data: which axis of which tensor is indexed by which group of units."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Axis", "Group", "PermutationSpec"]


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter or buffer that is indexed by a group's units, `block` consecutive entries for each.

    `block` is 1 but for a linear layer behind a flatten: of C x H x W inputs each channel owns H * W in a row.
    """

    group: str
    block: int = 1


@dataclass(frozen=True)
class Group:
    """Units that can be permuted together without changing the function: a layer's outputs, or a residual stream's."""

    name: str  # the module that first writes the group
    size: int  # number of units
    site: str  # the traced node whose output shows the units after their activation function


@dataclass(frozen=True)
class PermutationSpec:
    """All groups of a network, and for each tensor of its state dict the group of every axis (None: fixed)."""

    groups: Mapping[str, Group]
    axes: Mapping[str, tuple[Axis | None, ...]]

    @property
    def sites(self) -> tuple[str, ...]:
        """The traced nodes to watch, one per group, in the groups' order."""
        return tuple(group.site for group in self.groups.values())
