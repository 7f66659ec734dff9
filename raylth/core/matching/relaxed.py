"""Relaxed permutations: doubly stochastic matrices for permutations, and what they make of a network's tensors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from raylth.core.permutation.spec import Part, PermutationSpec

__all__ = ["Block", "Soft", "as_soft", "blocks_of", "moved_softly"]

Soft = Mapping[str, Tensor]  # group -> (networks, size, size): row i holds the shares of a network's units at position i


@dataclass(frozen=True)
class Block:
    """Entries of a tensor, one part of each of its axes, as one grid, and the sum of products that moves them."""

    entries: tuple[Tensor, ...]  # of each axis of the tensor, in the grid's order
    sizes: tuple[int, ...]  # of the grid
    before: tuple[int, ...]  # the grid's coordinates, as `torch.einsum` numbers them; 0 is the networks
    after: tuple[int, ...]
    factors: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # group, shape of its matrix, coordinates


def as_soft(perms: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the permutations of several networks, group -> (size,), as matrices: `X[n, i, perm_n[i]]` is 1."""
    return {name: torch.stack([torch.eye(len(each[name]))[each[name]] for each in perms]) for name in perms[0]}


def blocks_of(spec: PermutationSpec, name: str, shape: Sequence[int]) -> list[Block]:
    """Return the blocks of a tensor: together they have every entry once."""
    axes = spec.axes[name]
    choices = [[None] if axis is None else list(axis.parts) for axis in axes]
    return [_block(spec, parts, shape) for parts in product(*choices) if _fits(parts)]


def moved_softly(tensors: Tensor, blocks: Sequence[Block], soft: Soft) -> Tensor:
    """Return a tensor of several networks, (networks, ...), each moved by its matrices.

    It is linear in each group's matrix, and for permutations what `Permutation.apply` makes of it. Units within others, and
    entries whose order depends on those of another axis, are moved by the product of the matrices.
    """
    if len(blocks) == 1 and all(_is_whole(*each) for each in zip(blocks[0].entries, tensors.shape[1:], strict=True)):
        return _moved(tensors, blocks[0], soft)
    whole = torch.zeros_like(tensors)
    for block in blocks:
        places = [torch.arange(len(tensors)), *block.entries]
        mesh = torch.meshgrid(*[each.to(tensors.device) for each in places], indexing="ij")
        whole = whole.index_put(mesh, _moved(tensors[mesh], block, soft))
    return whole


def _is_whole(entries: Tensor, length: int) -> bool:
    return len(entries) == length and torch.equal(entries, torch.arange(length))


def _moved(tensors: Tensor, block: Block, soft: Soft) -> Tensor:
    """Move the entries of a block, (networks, entries of each axis)."""
    if not block.factors:
        return tensors
    given: list[Tensor | tuple[int, ...]] = [tensors.reshape(len(tensors), *block.sizes), (0, *block.before)]
    for group, sizes, coordinates in block.factors:
        given += [soft[group].reshape(len(tensors), *sizes), (0, *coordinates)]
    return torch.einsum(*given, (0, *block.after)).reshape(tensors.shape)


def _fits(parts: Sequence[Part | None]) -> bool:
    """Whether parts of several axes have entries in common: some are there for certain entries of another axis only."""
    for part in parts:
        for dim, rows in part.beside if part else ():
            chosen = parts[dim]
            if chosen is not None and not set(chosen.entries().flatten().tolist()) <= set(rows.entries().flatten().tolist()):
                return False
    return True


def _block(spec: PermutationSpec, parts: Sequence[Part | None], shape: Sequence[int]) -> Block:
    """Return the block of one part of each axis (None: the whole axis)."""
    entries: list[Tensor] = []
    sizes: list[int] = []
    names: list[str | None] = []  # of the grid's coordinates: the group whose units they count, inside what it is within
    ranges: list[range] = []  # coordinates of each axis
    for dim, part in enumerate(parts):
        first = len(sizes)
        entries.append(torch.arange(shape[dim]) if part is None else part.entries().flatten())
        sizes += [shape[dim]] if part is None else part.sizes
        names += [None] if part is None else part.groups
        ranges.append(range(first, len(sizes)))
    before = list(range(1, len(sizes) + 1))
    after = list(before)
    factors: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for name, chain in _chains(spec, parts, names, ranges):
        for place in chain:
            after[place] = before[place] + len(sizes)
        own = tuple(sizes[place] for place in chain)
        coordinates = (*(after[place] for place in chain), *(before[place] for place in chain))
        factors.append((name, own + own, coordinates))
    return Block(tuple(entries), tuple(sizes), tuple(before), tuple(after), tuple(factors))


def _chains(
    spec: PermutationSpec, parts: Sequence[Part | None], names: Sequence[str | None], ranges: Sequence[range]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each group of a grid that no other group there is within, with the coordinates of its units.

    Those are the coordinates of what it is within, from the outside in, and its own.
    """
    chains: dict[int, tuple[int, ...]] = {}
    for part, own in zip(parts, ranges, strict=True):
        near = [place for dim, _ in (part.beside if part else ()) for place in ranges[dim]]
        for place in own:
            if (name := names[place]) is not None:
                outer = (next(each for each in (*own, *near) if names[each] == o) for o in spec.groups[name].within)
                chains[place] = (*outer, place)
    inside = {place for chain in chains.values() for place in chain[:-1]}
    yield from ((str(names[place]), chain) for place, chain in chains.items() if place not in inside)
