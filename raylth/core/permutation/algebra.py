"""What can be done to axes: made one, taken apart, cut. See `atoms.py` for what they are.

In a layout every atom stands beside its parents; what an operation left without one of them has the same order for all of
that parent's entries (`settle`).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from raylth.core.permutation.atoms import (
    Atom,
    Cases,
    Expr,
    Layout,
    Many,
    Mismatch,
    Product,
    Sum,
    as_atom,
    boundaries,
    concat,
    fix,
    fixed,
    keys,
    leaves,
    parents,
    product,
    resolve,
    scope,
    size,
)
from raylth.core.permutation.cutting import explode, narrow, piece

__all__ = ["cut", "join", "join_layouts", "settle", "split", "unnest"]


def unnest(expr: Expr, gone: frozenset[object]) -> None:
    """Let the order of what is in an expression depend on the coordinates `gone` no more."""
    for atom in leaves(expr):
        if not scope(atom) & gone:
            continue
        link = atom.link
        atom.parents = tuple(as_atom(parent) for parent in parents(atom) if not keys(parent) <= gone)
        if not isinstance(link, Cases):
            continue
        if keys(link.parent) <= gone:
            first = link.cases[0]
            for case in link.cases[1:]:
                first = join(first, case)
            atom.link = first
            inside = resolve(link.parent)
            for part in inside.parts if isinstance(inside, Sum) else (inside,):
                unnest(first, keys(part) | gone)
        else:
            for case in link.cases:
                unnest(case, gone)


def split(expr: Expr, sizes: Sequence[int]) -> list[Expr]:
    """Take an axis apart into axes of these sizes, the outermost first. Raises Mismatch where it cannot be."""
    expr = resolve(expr)
    if sum(count > 1 for count in sizes) <= 1:
        return [expr if count > 1 else Many(1) for count in sizes]
    if isinstance(expr, Many):
        return [Many(count) for count in sizes]
    if isinstance(expr, Product):
        return _split_product(expr, sizes)
    wide = [count for count in sizes if count > 1]
    found = iter(_split_sum(expr, wide) if isinstance(expr, Sum) else _split_atom(expr, wide))
    return [next(found) if count > 1 else Many(1) for count in sizes]


def _split_product(expr: Product, sizes: Sequence[int]) -> list[Expr]:
    queue, result = list(expr.factors), []
    for wanted in sizes:
        taken: list[Expr] = []
        while wanted > 1:
            factor = queue.pop(0)
            count = size(factor)
            if wanted % count == 0:
                taken.append(factor)
                wanted //= count
            elif count % wanted == 0:
                head, rest = split(factor, (wanted, count // wanted))
                taken.append(head)
                queue.insert(0, rest)
                wanted = 1
            else:
                raise Mismatch("axes that were merged are taken apart elsewhere")
        result.append(product(taken))
    return result


def _split_atom(atom: Atom, sizes: Sequence[int]) -> list[Expr]:
    rows = [split(case, sizes) for case in atom.link.cases] if isinstance(atom.link, Cases) else []
    factors: list[Atom] = []
    for place, count in enumerate(sizes):
        name = f"{atom.name}/{place}" if place else atom.name
        factor = Atom(count, name, atom.rank, (*atom.parents, *factors), atom.fixed, origin=atom.origin)
        if isinstance(atom.link, Cases):
            factor.link = Cases(atom.link.parent, tuple(row[place] for row in rows))
        factors.append(factor)
    atom.link = Product(tuple(factors))
    return list(factors)


def _split_sum(expr: Sum, sizes: Sequence[int]) -> list[Expr]:
    inner = size(expr) // sizes[0]
    outers: list[Expr] = []
    inners: list[Expr] = []
    for part in _runs(expr, inner):
        head, rest = split(part, (size(part) // inner, inner))
        outers.append(head if size(head) > 1 else Atom(1, fixed=True))
        inners.append(rest)
    outer = Atom(sizes[0], link=concat(outers))
    if all(keys(rest) == keys(inners[0]) for rest in inners) and not isinstance(inners[0], Many):
        return [outer, *split(inners[0], sizes[1:])]
    others = _parents_of(inners, frozenset().union(*map(keys, outers), *map(keys, inners)))
    nested = Atom(inner, parents=(outer, *others), link=Cases(outer, tuple(inners)))
    return [outer, *split(nested, sizes[1:])]


def _runs(expr: Sum, length: int) -> list[Expr]:
    """Return the parts of a concatenation, those that are no multiples of a length put together."""
    runs: list[Expr] = []
    start = stop = 0
    for part in expr.parts:
        stop += size(part)
        if (stop - start) % length:
            continue
        if start == stop - size(part):
            runs.append(part)
        else:
            runs += [piece(expr, place, place + length) for place in range(start, stop, length)]
        start = stop
    return runs


def _parents_of(exprs: Iterable[Expr], without: frozenset[object]) -> tuple[Atom, ...]:
    found: dict[frozenset[object], Atom] = {}
    for expr in exprs:
        for atom in leaves(expr):
            for parent in parents(atom):
                if not keys(parent) <= without:
                    found.setdefault(keys(parent), as_atom(parent))
    return tuple(found.values())


def join(one: Expr, other: Expr) -> Expr:
    """Make two axes of the same length one: what moves in one moves in the other. What cannot be one is fixed in both."""
    one, other = resolve(one), resolve(other)
    if one == other or isinstance(other, Many):
        return one
    if isinstance(one, Many):
        return other
    if size(one) != size(other):
        raise Mismatch(f"axes of {size(one)} and {size(other)} entries")
    if isinstance(one, Atom) and isinstance(other, Atom):
        return _merge(one, other)
    try:
        pairs, put = _aligned(one, other)
    except Mismatch:
        fix(one)
        fix(other)
        return one
    return resolve(put([join(*pair) for pair in pairs]))


def _aligned(one: Expr, other: Expr) -> tuple[list[tuple[Expr, Expr]], Callable[[Iterable[Expr]], Expr]]:
    """Take two expressions apart alike; returns the pairs, and what puts such things together."""
    if isinstance(one, Sum) or isinstance(other, Sum):
        marks = sorted({mark for expr in (one, other) if isinstance(expr, Sum) for mark in boundaries(expr.parts)})
        return [(piece(one, *span), piece(other, *span)) for span in pairwise(marks)], concat
    sizes = _common_sizes(_sizes(one), _sizes(other))
    return list(zip(split(one, sizes), split(other, sizes), strict=True)), product


def _sizes(expr: Expr) -> list[int]:
    return [size(factor) for factor in expr.factors] if isinstance(expr, Product) else [size(expr)]


def _common_sizes(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the sizes of the coarsest product that refines both."""
    marks = {1}
    for sizes in (one, other):
        inner = 1
        for count in reversed(sizes):
            inner *= count
            marks.add(inner)
    order = sorted(marks, reverse=True)
    if any(outer % inner for outer, inner in pairwise(order)):
        raise Mismatch("axes that were merged in other places")
    return [outer // inner for outer, inner in pairwise(order)]


def _merge(one: Atom, other: Atom) -> Expr:
    """Make two atoms one."""
    if isinstance(other.link, Cases) and not isinstance(one.link, Cases):
        one, other = other, one
    if isinstance(one.link, Cases):
        return _merge_cases(one, one.link, other)
    common = scope(one) & scope(other)
    unnest(one, scope(one) - common)
    unnest(other, scope(other) - common)
    kept, left = sorted((one, other), key=lambda atom: (atom.rank, atom.origin, atom.number))
    left.link = kept
    kept.fixed |= left.fixed
    return kept


def _merge_cases(family: Atom, link: Cases, other: Atom) -> Expr:
    parent = keys(link.parent)
    if not parent <= scope(other):
        unnest(family, parent)
        return join(family, other)
    if not isinstance(other.link, Cases):
        explode(other, link.parent)
    if not isinstance(other.link, Cases) or keys(other.link.parent) != parent or len(other.link.cases) != len(link.cases):
        unnest(family, parent)
        unnest(other, parent)
        return join(family, other)
    for case, like in zip(link.cases, other.link.cases, strict=True):
        join(case, like)
    common = scope(family) & scope(other)
    unnest(family, scope(family) - common)
    other.link = family
    return family


def join_layouts(one: Layout, other: Layout) -> Layout:
    """Make two layouts of tensors of the same shape one, parents before what is nested in them."""
    order = sorted(range(len(one)), key=lambda axis: max((len(scope(atom)) for atom in leaves(one[axis])), default=0))
    result: dict[int, Expr] = {axis: join(one[axis], other[axis]) for axis in order}
    return settle([result[axis] for axis in range(len(one))])


def settle(layout: Iterable[Expr]) -> Layout:
    """Return a layout by what is known now, in which every atom stands beside its parents."""
    now = [resolve(expr) for expr in layout]
    while any(_settle(expr, [*now[:axis], *now[axis + 1 :]]) for axis, expr in enumerate(now)):
        now = [resolve(expr) for expr in now]
    return now


def _settle(expr: Expr, beside: Sequence[Expr]) -> bool:
    """Free what is in an expression from parents that do not stand beside it; returns whether there were any."""
    if isinstance(expr, Sum):
        return any(_settle(resolve(part), beside) for part in expr.parts)
    if isinstance(expr, Product):
        factors = expr.factors
        return any(_settle(factor, [*beside, *factors[:n], *factors[n + 1 :]]) for n, factor in enumerate(factors))
    if not isinstance(expr, Atom):
        return False
    there: set[object] = set()
    for other in beside:
        for factor in other.factors if isinstance(other, Product) else (other,):
            there |= keys(factor)
    gone = frozenset(scope(expr) - there)
    unnest(expr, gone)
    return bool(gone)


def cut(layout: Layout, axis: int, start: int, stop: int) -> Layout:
    """Return the layout of entries `start` to `stop` of an axis, which stay where they are if a run is cut in the middle."""
    try:
        return settle(narrow([resolve(expr) for expr in layout], axis, start, stop))
    except Mismatch:
        fix(layout[axis])
        return settle([*layout[:axis], fixed(stop - start), *layout[axis + 1 :]])
