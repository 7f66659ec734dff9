"""Cuts axes: a slice, a chunk or a single entry of an axis, and what that leaves of what is nested in it."""

from collections.abc import Callable
from functools import partial
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
    keys,
    parents,
    product,
    resolve,
    scope,
    size,
)

__all__ = ["explode", "narrow", "pick", "piece"]


def piece(expr: Expr, start: int, stop: int) -> Expr:
    """Return entries `start` to `stop` of an expression. Raises Mismatch where a run is cut in the middle."""
    return narrow([expr], 0, start, stop)[0]


def narrow(layout: Layout, axis: int, start: int, stop: int) -> Layout:
    """Return the layout of entries `start` to `stop` of an axis. Raises Mismatch where a run is cut in the middle."""
    expr = resolve(layout[axis])
    if not isinstance(expr, Product):
        kept, others = _restricted(expr, start, stop, layout)
        others[axis] = kept
        return others
    outer, rest = expr.factors[0], product(expr.factors[1:])
    run = size(rest)
    if start % run == 0 and stop % run == 0:
        kept, others = _restricted(outer, start // run, stop // run, [*layout[:axis], rest, *layout[axis + 1 :]])
        others[axis] = product((kept, others[axis]))
        return others
    place = start // run
    if place != (stop - 1) // run:
        raise Mismatch("a run that must stay together is cut")
    inside = narrow(layout, axis, place * run, (place + 1) * run)
    return narrow(inside, axis, start - place * run, stop - place * run)


def _restricted(expr: Expr, start: int, stop: int, others: Layout) -> tuple[Expr, Layout]:
    """Return entries `start` to `stop` of an atom or a sum, and what the other axes are beside them."""
    if (start, stop) == (0, size(expr)):
        return expr, list(others)
    if isinstance(expr, Many):
        return Many(stop - start), list(others)

    def nested(atom: Atom) -> Expr:
        for parent in parents(atom):
            offset = _offset(parent, expr)
            if offset is None:
                continue
            first, last = max(0, start - offset), min(size(parent), stop - offset)
            if first < last and (first, last) != (0, size(parent)):
                found = _restrict(atom, parent, first, last)
                return _map(found, nested) if found is not atom else found
        return atom

    beside = [_map(other, nested) for other in others]
    return pick(expr, start, stop), beside


def _map(expr: Expr, change: Callable[[Atom], Expr]) -> Expr:
    """Return an expression with its atoms changed."""
    expr = resolve(expr)
    if isinstance(expr, Product):
        return product(_map(factor, change) for factor in expr.factors)
    if isinstance(expr, Sum):
        return concat(_map(part, change) for part in expr.parts)
    return change(expr) if isinstance(expr, Atom) else expr


def _offset(parent: Expr, expr: Expr) -> int | None:
    """Return where a parent begins in an atom or a sum; None where it is not in it as a whole."""
    if keys(parent) == keys(expr):
        return 0
    if not isinstance(expr, Sum):
        return None
    wanted = [keys(part) for part in (parent.parts if isinstance(parent, Sum) else (parent,))]
    found, marks = [keys(part) for part in expr.parts], boundaries(expr.parts)
    for place in range(len(found) - len(wanted) + 1):
        if found[place : place + len(wanted)] == wanted:
            return marks[place]
    return None


def pick(expr: Expr, start: int, stop: int) -> Expr:
    """Return entries `start` to `stop` of an expression; an atom is refined to a sum there."""
    expr = resolve(expr)
    if (start, stop) == (0, size(expr)):
        return expr
    if isinstance(expr, Product):
        return piece(expr, start, stop)
    if isinstance(expr, Many):
        return Many(stop - start)
    if isinstance(expr, Sum):
        marks, taken = boundaries(expr.parts), []
        for part, begin, end in zip(expr.parts, marks, marks[1:], strict=False):
            if begin < stop and end > start:
                taken.append(pick(part, max(start, begin) - begin, min(stop, end) - begin))
        return concat(taken)
    marks = sorted({0, start, stop, size(expr)})
    parts: list[Atom] = []
    for begin, end in pairwise(marks):
        name = f"{expr.name}[{begin}]" if begin else expr.name
        part = Atom(end - begin, name, expr.rank, expr.parents, expr.fixed, origin=expr.origin)
        if isinstance(expr.link, Cases):
            part.link = Cases(expr.link.parent, tuple(pick(case, begin, end) for case in expr.link.cases))
        parts.append(part)
    expr.link = Sum(tuple(parts))
    return parts[marks.index(start)]


def _restrict(atom: Atom, parent: Expr, start: int, stop: int) -> Expr:
    """Return what a nested atom is beside entries `start` to `stop` of a parent only."""
    pick(parent, start, stop)  # the parent is a sum with such parts now
    if isinstance(atom.link, Cases) and keys(atom.link.parent) != keys(parent):
        within = atom.link
        cases = tuple(_map(case, lambda leaf: _restrict_if(leaf, parent, start, stop)) for case in within.cases)
        others = tuple(as_atom(each) for each in parents(atom) if keys(each) != keys(parent))
        return Atom(atom.size, atom.name, atom.rank, others, atom.fixed, Cases(within.parent, cases), origin=atom.origin)
    if not isinstance(atom.link, Cases):
        explode(atom, Atom(size(parent), link=resolve(parent)))
    link = atom.link
    assert isinstance(link, Cases)
    inside = link.parent.link
    while isinstance(inside, Atom):
        inside = inside.link
    assert isinstance(inside, Sum)
    marks, taken = boundaries(inside.parts), list[tuple[Expr, Expr]]()
    for part, case, begin, end in zip(inside.parts, link.cases, marks[:-1], marks[1:], strict=True):
        if begin >= stop or end <= start:
            continue
        first, last = max(start, begin) - begin, min(stop, end) - begin
        if (first, last) != (0, end - begin):
            case = _map(case, partial(_restrict_if, parent=part, start=first, stop=last))
        taken.append((pick(part, first, last), case))
    if len(taken) == 1:
        return taken[0][1]
    others = tuple(
        as_atom(_restrict_if(each, parent, start, stop) if isinstance(each, Atom) else each)
        for each in parents(atom)
        if keys(each) != keys(link.parent)
    )
    left = Atom(stop - start, link=concat(part for part, _ in taken))
    found = Cases(left, tuple(case for _, case in taken))
    return Atom(atom.size, atom.name, atom.rank, (*others, left), atom.fixed, found, origin=atom.origin)


def _restrict_if(atom: Atom, parent: Expr, start: int, stop: int) -> Expr:
    """Restrict an atom where it is nested in the parent."""
    now = resolve(parent)
    return _restrict(atom, now, start, stop) if any(keys(each) == keys(now) for each in parents(atom)) else atom


def explode(atom: Atom, parent: Atom) -> None:
    """Make an atom that is nested in `parent`, which is a sum, a family with one case for each of its parts."""
    inside = parent.link
    while isinstance(inside, Atom):
        inside = inside.link
    assert isinstance(inside, Sum), "only a sum has cases"
    others = [as_atom(each) for each in parents(atom) if keys(each) != keys(parent)]
    for other in others:
        if other.link is None and keys(parent) <= scope(other):
            explode(other, parent)
    cases = []
    for place, part in enumerate(inside.parts):
        nested = [_in_part(other, parent, place) for other in others]
        if size(part) > 1 and not isinstance(resolve(part), Many):
            nested.append(as_atom(part))
        name = f"{atom.name}[{place}]" if place else atom.name
        cases.append(Atom(atom.size, name, atom.rank, tuple(nested), atom.fixed, origin=atom.origin))
    atom.parents = (*others, parent)
    atom.link = Cases(parent, tuple(cases))


def _in_part(atom: Atom, parent: Atom, place: int) -> Atom:
    """Return what an atom is in one part of a sum."""
    link = atom.link
    if isinstance(link, Cases) and keys(link.parent) == keys(parent):
        return as_atom(link.cases[place])
    return atom
