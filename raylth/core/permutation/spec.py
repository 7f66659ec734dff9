"""The permutation symmetry of a network as data: which entries of which axis of which tensor each group's units own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from raylth.core.program import Program

__all__ = ["Axis", "Group", "Part", "PermutationSpec", "Site"]

SHOWN = 8  # groups in a spec's repr


@dataclass(frozen=True)
class Part:
    """Entries of an axis as a grid that groups' units span: `start + sum(coordinate * stride)` for each place of the grid.

    A factor of the grid is a group's units, or None for entries that each unit owns several of, in an order that stays. A
    linear layer behind a flatten of C x H x W has a part with the factors (channels, None), of sizes C and H * W and strides
    H * W and 1. `beside` are parts of other axes, (axis, part), for whose entries this part holds: in a grouped convolution
    the order of the inputs depends on the convolution group that the row of the weight belongs to.
    """

    groups: tuple[str | None, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0
    beside: "tuple[tuple[int, Part], ...]" = ()

    @property
    def length(self) -> int:
        """The number of entries."""
        return prod(self.sizes)

    def entries(self) -> Tensor:
        """Return the part's entries as an int64 grid."""
        grid = torch.tensor(self.start)
        for size, stride in zip(self.sizes, self.strides, strict=True):
            grid = grid[..., None] + torch.arange(size) * stride
        return grid

    def led_by(self, names: Sequence[str]) -> "Part":
        """Return the part with the factors of some groups in front, in that order: their units come one after the other."""
        order = [self.groups.index(name) for name in names]
        order += [place for place in range(len(self.groups)) if place not in order]
        groups, sizes, strides = (
            tuple(values[place] for place in order) for values in (self.groups, self.sizes, self.strides)
        )
        return replace(self, groups=groups, sizes=sizes, strides=strides)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter or buffer: its parts; more than one behind a concatenation."""

    parts: tuple[Part, ...]

    @property
    def groups(self) -> set[str]:
        """The groups whose units the axis holds."""
        return {name for part in self.parts for name in part.groups if name is not None}

    @property
    def beside(self) -> tuple[int, ...]:
        """The other axes of the tensor on whose entries the order of this one's depends."""
        return tuple(sorted({dim for part in self.parts for dim, _ in part.beside}))


@dataclass(frozen=True)
class Site:
    """Where a group's units can be seen while the network runs: entries of an axis of an operation's output."""

    node: str  # of the exported program
    axis: int  # of that node's output
    part: Part  # of that axis, the factors of the group and what it is within in front
    before: str | None = None  # where `node` is an activation: the node whose output goes into it


@dataclass(frozen=True)
class Group:
    """Units that can be permuted together without changing the function: a layer's outputs, or a residual stream's.

    Units of a group `within` others are permuted inside each unit of those: those of an attention head inside the head.
    `size` counts all, head by head. What they are within is named from the outside in.
    """

    name: str  # the module that first writes the group
    size: int  # number of units
    sites: tuple[Site, ...]  # in the program's order: after the activations, or where there are none, all outputs
    site: Site | None  # the one that matching watches; the last of `sites` unless chosen; None: groups within it are watched
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class PermutationSpec:
    """All groups of a network, and for each tensor of its state dict what every axis holds (None: fixed)."""

    groups: Mapping[str, Group]
    axes: Mapping[str, tuple[Axis | None, ...]]
    program: Program | None = None  # what computes the nodes that sites name
    tied: tuple[str, ...] = ()  # names in `axes` of tensors that have another name there, too

    def __repr__(self) -> str:
        """Name the groups and their sizes, of many the first: all axes of a network fill pages."""
        sizes = [f"{group.name}: {group.size}" for group in self.groups.values()]
        more = f", and {len(sizes) - SHOWN} more" if len(sizes) > SHOWN else ""
        return f"PermutationSpec({len(sizes)} groups: {', '.join(sizes[:SHOWN])}{more}; {len(self.axes)} tensors)"

    def inner_size(self, name: str) -> int:
        """Return how many units a group has within each unit of what it is within."""
        group = self.groups[name]
        return group.size // self.groups[group.within[-1]].size if group.within else group.size

    def order(self, tensor: str, dim: int, perms: Mapping[str, Tensor]) -> Tensor | None:
        """Return which entry each position of an axis takes when every group's units move by `perms`: int64, (length,).

        Where that depends on other axes, it has their lengths, too, and 1 for the rest; positions on those are the new ones.
        None for an axis that stays.
        """
        axis = self.axes[tensor][dim]
        if axis is None:
            return None
        lengths = [1] * len(self.axes[tensor])
        for other in (dim, *axis.beside):
            found = self.axes[tensor][other]
            assert found is not None
            lengths[other] = _length(found)
        order = torch.zeros(lengths, dtype=torch.int64)
        for part in axis.parts:
            places, taken = self._moved(part, dim, len(lengths), perms)
            order[places] = taken
        return order if axis.beside else order.flatten()

    def _moved(self, part: Part, dim: int, ndim: int, perms: Mapping[str, Tensor]) -> tuple[tuple[Tensor | int, ...], Tensor]:
        """Return a part's positions, as an index of the whole axis' order, and the entries that they take."""
        grids = [*part.beside, (dim, part)]
        sizes = [size for _, grid in grids for size in grid.sizes]
        steps = [
            torch.arange(size).view([-1 if place == number else 1 for place in range(len(sizes))])
            for number, size in enumerate(sizes)
        ]
        names = [name for _, grid in grids for name in grid.groups]
        coordinates = {name: step for name, step in zip(names, steps, strict=True) if name is not None}
        places: list[Tensor | int] = [0] * ndim
        taken = torch.tensor(part.start)
        number = 0
        for axis, grid in grids:
            place = torch.tensor(grid.start)
            for name, stride in zip(grid.groups, grid.strides, strict=True):
                step = steps[number]
                place = place + step * stride
                if grid is part:
                    taken = taken + (step if name is None else self._source(name, coordinates, perms)) * stride
                number += 1
            places[axis] = place.expand(sizes)
        return tuple(places), taken.expand(sizes)

    def _source(self, name: str, coordinates: Mapping[str, Tensor], perms: Mapping[str, Tensor]) -> Tensor:
        """Return which unit, counted inside what the group is within, stands at given coordinates."""
        unit = torch.tensor(0)
        for each in (*self.groups[name].within, name):
            unit = unit * self.inner_size(each) + coordinates[each]
        return perms[name].cpu()[unit] % self.inner_size(name)

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
            if group.site is None and index == -1:
                groups[name] = group
                continue
            if not -len(group.sites) <= index < len(group.sites):
                raise ValueError(f"stream_site: group {name!r} has {len(group.sites)} sites, there is none at {index}")
            site = group.sites[index]
            if sites == "pre_activation" and site.before is not None:
                site = replace(site, node=site.before)
            groups[name] = replace(group, site=site)
        if chosen:
            raise ValueError(f"stream_site: there is no group {next(iter(chosen))!r}; there are {', '.join(self.groups)}")
        return replace(self, groups=groups)

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless `state` holds tensors of the network that the spec was derived from."""
        for name, axes in self.axes.items():
            if name not in state:
                raise ValueError(f"{name!r} is missing: the spec was derived from another architecture")
            if len(axes) != state[name].ndim:
                raise ValueError(f"{name}: expected {len(axes)} axes, found {state[name].ndim}")
            for dim, axis in enumerate(axes):
                length = state[name].shape[dim] if axis is None else _length(axis)
                if state[name].shape[dim] != length:
                    raise ValueError(f"{name}: axis {dim} has {state[name].shape[dim]} entries, its groups need {length}")


def _length(axis: Axis) -> int:
    """Return the number of entries of an axis."""
    beside = axis.parts[0].beside
    return sum(part.length for part in axis.parts if part.beside == beside)
