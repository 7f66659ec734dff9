"""The permutation symmetry of a network as data: which entries of which axis of which tensor each group's units own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Axis", "Group", "Part", "PermutationSpec", "Site"]

SHOWN = 8  # groups in a spec's repr


@dataclass(frozen=True)
class Part:
    """Consecutive entries of an axis that one group's units own in order, `block` entries each.

    `group` is None for entries that must stay where they are. `block` is 1 but for a linear layer behind a flatten,
    where of C x H x W inputs each channel owns H * W in a row, and at grouped convolutions and group norms, where the
    channels of one convolution group move together.
    """

    group: str | None
    length: int
    block: int = 1


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter or buffer: its parts, in order; more than one behind a concatenation."""

    parts: tuple[Part, ...]

    @property
    def groups(self) -> set[str]:
        """The groups whose units the axis holds."""
        return {part.group for part in self.parts if part.group is not None}

    def index(self, perms: Mapping[str, Tensor]) -> Tensor:
        """Return (length,) int64: which entry each position takes when every group's units move by `perms`."""
        pieces, start = [], 0
        for part in self.parts:
            if part.group is None:
                pieces.append(torch.arange(start, start + part.length))
            else:
                units = perms[part.group].cpu()
                pieces.append(start + (units[:, None] * part.block + torch.arange(part.block)).flatten())
            start += part.length
        return torch.cat(pieces)


@dataclass(frozen=True)
class Site:
    """Where a group's units can be seen while the network runs."""

    node: str  # of the traced graph
    axis: int  # of that node's output
    start: int  # first entry of that axis which the group owns
    length: int
    block: int  # entries for each unit
    before: str | None = None  # where `node` is an activation: the node whose output goes into it


@dataclass(frozen=True)
class Group:
    """Units that can be permuted together without changing the function: a layer's outputs, or a residual stream's."""

    name: str  # the module that first writes the group
    size: int  # number of units
    sites: tuple[Site, ...]  # in the graph's order: after the activations, or where there are none, all outputs
    site: Site  # the one that matching watches; the last of `sites` unless chosen


@dataclass(frozen=True)
class PermutationSpec:
    """All groups of a network, and for each tensor of its state dict what every axis holds (None: fixed)."""

    groups: Mapping[str, Group]
    axes: Mapping[str, tuple[Axis | None, ...]]

    def __repr__(self) -> str:
        """Name the groups and their sizes, of many the first: all axes of a network fill pages."""
        sizes = [f"{group.name}: {group.size}" for group in self.groups.values()]
        more = f", and {len(sizes) - SHOWN} more" if len(sizes) > SHOWN else ""
        return f"PermutationSpec({len(sizes)} groups: {', '.join(sizes[:SHOWN])}{more}; {len(self.axes)} tensors)"

    def watch(self, sites: str = "post_activation", stream_site: Mapping[str, int] | None = None) -> "PermutationSpec":
        """Return the same symmetry with other sites at which activation matching compares units.

        `stream_site` maps groups to the site to compare at, an index into `Group.sites`: -1 is the last
        block's output of a residual stream, -2 the last but one. `sites` is "post_activation" or "pre_activation".
        Raises ValueError for a group or site that does not exist.
        """
        if sites not in ("post_activation", "pre_activation"):
            raise ValueError(f"sites is post_activation or pre_activation, not {sites!r}")
        chosen = dict(stream_site or {})
        groups = {}
        for name, group in self.groups.items():
            index = chosen.pop(name, -1)
            if not -len(group.sites) <= index < len(group.sites):
                raise ValueError(f"stream_site: group {name!r} has {len(group.sites)} sites, there is none at {index}")
            site = group.sites[index]
            if sites == "pre_activation" and site.before is not None:
                site = replace(site, node=site.before)
            groups[name] = replace(group, site=site)
        if chosen:
            raise ValueError(f"stream_site: there is no group {next(iter(chosen))!r}; there are {', '.join(self.groups)}")
        return PermutationSpec(groups, self.axes)

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless `state` holds tensors of the network that the spec was derived from."""
        for name, axes in self.axes.items():
            if name not in state:
                raise ValueError(f"{name!r} is missing: the spec was derived from another architecture")
            if len(axes) != state[name].ndim:
                raise ValueError(f"{name}: expected {len(axes)} axes, found {state[name].ndim}")
            for dim, axis in enumerate(axes):
                length = state[name].shape[dim] if axis is None else sum(part.length for part in axis.parts)
                if state[name].shape[dim] != length:
                    raise ValueError(f"{name}: axis {dim} has {state[name].shape[dim]} entries, its groups need {length}")
