"""From what a network's tensors were found to stand for to data: which entries of which axis each group's units own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raylth.core.permutation.algebra import settle, unnest
from raylth.core.permutation.atoms import Atom, Cases, Expr, Layout, Many, Product, Sum, keys, leaves, parents, resolve, size
from raylth.core.permutation.cutting import explode, pick

__all__ = ["Piece", "layouts_of", "pieces"]

MOST_CASES = 64  # entries of a fixed axis each of which has an order of its own


@dataclass(frozen=True)
class Piece:
    """Entries of an axis as a grid: one axis of the grid for each atom, the outermost first.

    `beside` are the pieces of other axes for which it holds: (axis, piece).
    """

    atoms: tuple[Atom | None, ...]
    entries: Tensor  # int64, of the atoms' sizes
    tags: frozenset[Atom]  # of the parts of sums in which it lies
    beside: "tuple[tuple[int, Piece], ...]" = ()


def layouts_of(tensors: Mapping[str, Layout]) -> dict[str, Layout]:
    """Return the layouts of a network's tensors, in which every nested atom has parents that may move, too."""
    while True:
        found = {name: settle(layout) for name, layout in tensors.items()}
        nested = {atom: None for layout in found.values() for expr in layout for atom in _all_leaves(expr)}
        if not any(_straighten(atom) for atom in nested):
            return found


def _all_leaves(expr: Expr) -> Iterator[Atom]:
    for atom in leaves(expr):
        if isinstance(atom.link, Cases):
            for case in atom.link.cases:
                yield from _all_leaves(case)
        else:
            yield atom


def _straighten(atom: Atom) -> bool:
    """Give an atom that is nested in what is fixed, or in a sum, one case for each part of it."""
    if atom.link is not None or atom.fixed:
        return False
    for parent in parents(atom):
        if isinstance(parent, Atom) and not isinstance(parent.link, Cases):
            if not parent.fixed:
                continue
            if parent.size > MOST_CASES:
                unnest(atom, keys(parent))
                return True
            for place in range(parent.size - 1):
                pick(parent, place, place + 1)
        explode(atom, Atom(size(parent), link=resolve(parent)))
        return True
    return False


def pieces(layout: Layout) -> list[list[Piece]]:
    """Return the pieces of which each axis of a tensor consists; one that depends on others has some for each of theirs."""
    order = sorted(range(len(layout)), key=lambda axis: _depth(layout[axis]))
    found: dict[int, list[Piece]] = {}
    for axis in order:
        needed = [other for other in found if _depends(layout[axis], layout[other])]
        found[axis] = [
            replace(piece, beside=tuple(chosen))
            for chosen in _choices(needed, found)
            for piece in _axis(layout[axis], chosen)
        ]
    return [found[axis] for axis in range(len(layout))]


def _depth(expr: Expr) -> int:
    return max((len(parents(atom)) for atom in leaves(expr)), default=0)


def _depends(expr: Expr, other: Expr) -> bool:
    own = keys(expr)
    there = set(keys(other)).union(*map(keys, other.factors if isinstance(other, Product) else ()))
    wanted = {key for atom in leaves(expr) for parent in parents(atom) for key in keys(parent)}
    return bool((wanted - own) & there) or bool({key for key in wanted if key in there and key not in own})


def _choices(axes: Sequence[int], found: Mapping[int, list[Piece]]) -> list[list[tuple[int, Piece]]]:
    chosen: list[list[tuple[int, Piece]]] = [[]]
    for axis in axes:
        chosen = [[*before, (axis, piece)] for before in chosen for piece in found[axis]]
    return chosen


def _axis(expr: Expr, beside: Iterable[tuple[int, Piece]]) -> list[Piece]:
    tags = frozenset().union(*(piece.tags for _, piece in beside))
    length = size(expr)
    return [Piece(*grid) for grid in _grids(resolve(expr), torch.arange(length), tags)]


def _grids(
    expr: Expr, entries: Tensor, tags: frozenset[Atom]
) -> list[tuple[tuple[Atom | None, ...], Tensor, frozenset[Atom]]]:
    """Return the grids of entries that an expression arranges; `entries` is flat."""
    if isinstance(expr, Sum):
        grids, start = [], 0
        for part in expr.parts:
            stop = start + size(part)
            grids += _grids(resolve(part), entries[start:stop], tags | frozenset(leaves(part)))
            start = stop
        return grids
    if isinstance(expr, Product):
        outer, *rest = expr.factors
        return _crossed(resolve(outer), Product(tuple(rest)) if len(rest) > 1 else rest[0], entries, tags)
    if isinstance(expr, Many):
        return [((None,), entries, tags)]
    if isinstance(expr.link, Cases):
        return _grids(_case(expr.link, tags), entries, tags)
    return [((None if expr.fixed else expr,), entries, tags | {expr})]


def _crossed(
    outer: Expr, rest: Expr, entries: Tensor, tags: frozenset[Atom]
) -> list[tuple[tuple[Atom | None, ...], Tensor, frozenset[Atom]]]:
    """Return the grids of a product; what comes first may be nested in what comes later, and the other way about."""
    table = entries.view(size(outer), -1)
    wanted = frozenset(leaves(outer)) and any(_is_open(outer, tags) for _ in (0,))
    result = []
    if wanted:  # the outer one has cases over a part of the rest
        for atoms, places, inside in _grids(resolve(rest), torch.arange(table.shape[1]), tags):
            for first, rows, here in _grids(outer, torch.arange(table.shape[0]), inside):
                grid = table[rows.reshape(-1)][:, places.reshape(-1)]
                result.append(((*first, *atoms), grid.reshape(*rows.shape, *places.shape), here))
        return result
    for first, rows, inside in _grids(outer, torch.arange(table.shape[0]), tags):
        for atoms, places, here in _grids(resolve(rest), torch.arange(table.shape[1]), inside):
            grid = table[rows.reshape(-1)][:, places.reshape(-1)]
            result.append(((*first, *atoms), grid.reshape(*rows.shape, *places.shape), here))
    return result


def _is_open(expr: Expr, tags: frozenset[Atom]) -> bool:
    """Whether an expression has cases that the tags do not decide."""
    return any(isinstance(atom.link, Cases) and _which(atom.link, tags) is None for atom in leaves(expr))


def _case(link: Cases, tags: frozenset[Atom]) -> Expr:
    place = _which(link, tags)
    assert place is not None, "a family beside none of its parent's parts"
    return resolve(link.cases[place])


def _which(link: Cases, tags: frozenset[Atom]) -> int | None:
    inside = link.parent.link
    while isinstance(inside, Atom):
        inside = inside.link
    assert isinstance(inside, Sum)
    for place, part in enumerate(inside.parts):
        if tags & frozenset(leaves(part)):
            return place
    return None
