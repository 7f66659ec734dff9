"""The part of a network's symmetry that keeps runs of consecutive entries together, as N:M masks and blocks need it.

Of d units whose runs have m entries, the d / m runs may change their order, and the units inside each run: a nested symmetry,
as that of attention heads and the units inside them. Everything else that the derived symmetry allows would tear runs apart.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from raylth.core.permutation.permutation import Permutation
from raylth.core.permutation.spec import Axis, Group, Part, PermutationSpec

__all__ = ["restrict", "unrestricted"]


def restrict(spec: PermutationSpec, blocks: Mapping[str, Mapping[int, int]]) -> PermutationSpec:
    """Return the largest symmetry within `spec` that is made of blocks and keeps runs of entries together.

    `blocks` maps tensors to {axis: length of a run}; runs begin at multiples of their length (`Structure.blocks`). A group
    whose units such an axis holds is replaced by two: `NAME:blocks` and, within it, the units inside each block under the
    group's own name; a unit with several entries of the axis, as behind a flatten, needs smaller blocks or none. A group of
    which no blocks keep the runs (a concatenation of 6 channels under runs of 4) stays where it is, with the groups that it
    is within or that are within it: it is missing in the result.
    """
    sizes: dict[str, set[int]] = {}
    still: set[str] = set()
    for name, lengths in blocks.items():
        for axis, length in lengths.items():
            for part in held.parts if (held := spec.axes[name][axis]) else ():
                found = _blocks_of(part, length) if _is_alike(part, lengths) else None
                if found is None:
                    still |= {group for group in part.groups if group}
                for group, size in (found or {}).items():
                    sizes.setdefault(group, set()).add(size)
    still |= {group for group, found in sizes.items() if not _is_chain(spec.inner_size(group), found)}
    roots = {_root(spec, group) for group in still}
    spec = _without(spec, {group for group in spec.groups if _root(spec, group) in roots})
    for group in [group for group in sizes if group in spec.groups]:
        for size in sorted(sizes[group], reverse=True):
            if size < spec.inner_size(group):
                spec = _split(spec, group, size)
    return spec


def unrestricted(permutation: Permutation, spec: PermutationSpec) -> Permutation:
    """Return a permutation of a restricted symmetry as one of the whole symmetry `spec`: what is missing stays."""
    still = {name: torch.arange(group.size) for name, group in spec.groups.items()}
    return Permutation(spec, {name: permutation.perms.get(name, still[name]) for name in spec.groups})


def _is_alike(part: Part, lengths: Mapping[int, int]) -> bool:
    """Whether all rows of a block have one order of inputs: each convolution group has its own, in which a block must lie."""
    for axis, other in part.beside:
        inner = min(zip(other.strides, other.sizes, strict=True), key=lambda factor: factor[0] or other.length)
        if inner[0] != 1 or inner[1] % lengths.get(axis, 1):
            return axis not in lengths
    return True


def _blocks_of(part: Part, length: int) -> dict[str, int] | None:
    """Return the size of blocks of each group's units that keep aligned runs of an axis together; None where none do.

    Groups that need no blocks are left out.
    """
    factors = [
        (stride, size, name) for name, size, stride in zip(part.groups, part.sizes, part.strides, strict=True) if size > 1
    ]
    last = part.start + sum((size - 1) * stride for stride, size, _ in factors)
    if part.start // length == last // length or not any(name for _, _, name in factors):
        return {}  # it lies inside one run, or nothing of it moves
    if part.start % length:
        return None
    return _blocks_inside(sorted(factors, key=lambda factor: factor[0]), length)


def _blocks_inside(factors: Sequence[tuple[int, int, str | None]], length: int) -> dict[str, int] | None:
    """Return the blocks of a grid that begins with a run: `factors` are (stride, size, group), the innermost first."""
    found: dict[str, int] = {}
    inside = 1  # entries that what was looked at spans
    for stride, size, name in factors:
        if inside % length == 0:  # whole runs move
            if stride % length:
                return None
            continue
        spanned = size * inside
        is_in_run = length % spanned == 0
        is_of_blocks = length % inside == 0 and spanned % length == 0
        if stride != inside or not (is_in_run or is_of_blocks):
            return None
        if name is not None and not is_in_run:
            found[name] = length // inside
        inside = spanned
    return found


def _is_chain(inner: int, sizes: set[int]) -> bool:
    """Whether blocks of all these sizes can be inside one another, and the largest inside what the units are within."""
    return all(outer % size == 0 for outer, size in pairwise([inner, *sorted(sizes, reverse=True)]))


def _root(spec: PermutationSpec, group: str) -> str:
    return (*spec.groups[group].within, group)[0]


def _split(spec: PermutationSpec, name: str, size: int) -> PermutationSpec:
    """Replace a group by blocks of `size` of its units and the units within these."""
    blocks = _free_name(f"{name}:blocks", spec.groups)

    def split(part: Part) -> Part:
        beside = tuple((axis, split(other)) for axis, other in part.beside)
        if name not in part.groups:
            return replace(part, beside=beside)
        place = part.groups.index(name)
        count, stride = part.sizes[place], part.strides[place]
        assert count % size == 0, f"{name}: a part of {count} units in blocks of {size}"
        return Part(
            (*part.groups[:place], blocks, name, *part.groups[place + 1 :]),
            (*part.sizes[:place], count // size, size, *part.sizes[place + 1 :]),
            (*part.strides[:place], stride * size, stride, *part.strides[place + 1 :]),
            part.start,
            beside,
        )

    def within(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(each for outer in names for each in ((blocks, name) if outer == name else (outer,)))

    groups: dict[str, Group] = {}
    for each, group in spec.groups.items():
        if each == name:
            groups[blocks] = Group(blocks, group.size // size, (), None, group.within)
            group = replace(group, within=(*group.within, blocks))
        else:
            group = replace(group, within=within(group.within))
        groups[each] = _with_sites(group, split)
    axes = {
        tensor: tuple(axis and Axis(tuple(map(split, axis.parts))) for axis in held) for tensor, held in spec.axes.items()
    }
    return replace(spec, groups=groups, axes=axes)


def _without(spec: PermutationSpec, names: set[str]) -> PermutationSpec:
    """Return the symmetry in which some groups, with all that are within them, stay where they are."""
    if not names:
        return spec

    def without(part: Part) -> Part:
        beside = tuple((axis, without(other)) for axis, other in part.beside)
        return replace(part, groups=tuple(None if name in names else name for name in part.groups), beside=beside)

    def reduced(axis: Axis) -> Axis | None:
        parts = tuple(map(without, axis.parts))
        return Axis(parts) if any(any(part.groups) for part in parts) else None

    groups = {name: _with_sites(group, without) for name, group in spec.groups.items() if name not in names}
    axes = {tensor: tuple(axis and reduced(axis) for axis in held) for tensor, held in spec.axes.items()}
    return replace(spec, groups=groups, axes=axes)


def _with_sites(group: Group, change: Callable[[Part], Part]) -> Group:
    sites = tuple(replace(site, part=change(site.part)) for site in group.sites)
    site = group.site and replace(group.site, part=change(group.site.part))
    return replace(group, sites=sites, site=site)


def _free_name(name: str, taken: Iterable[str]) -> str:
    names, number, found = set(taken), 1, name
    while found in names:
        number += 1
        found = f"{name}#{number}"
    return found
