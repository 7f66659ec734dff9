"""The algebra of axes: what each entry of a tensor's axis stands for while a network's symmetry is derived.

An axis is an *expression*: an atom, `Many` (the same all along the axis), a `Product` (a merge of axes, the outermost first)
or a `Sum` (a concatenation). An atom is a set of things that move together wherever they appear: the units of a layer, the
heads of an attention, the positions of a picture. One that is fixed does not move. An atom may be nested in others, its
parents: the units inside each head, which are permuted in each head by themselves.

Atoms are refined while the network is followed: a reshape makes an atom a product of two, the second nested in the first; a
split makes it a sum; an addition makes two atoms one. What was nested in an atom that is refined into a sum becomes a family
with one *case* for each part. Every refinement leaves a subgroup of what could move before: nothing moves that must not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import prod

__all__ = [
    "Atom",
    "Cases",
    "Expr",
    "Layout",
    "Many",
    "Mismatch",
    "Product",
    "Sum",
    "as_atom",
    "boundaries",
    "concat",
    "fix",
    "fixed",
    "is_free",
    "keys",
    "leaves",
    "parents",
    "product",
    "resolve",
    "scope",
    "size",
]


class Mismatch(ValueError):
    """Two axes that cannot hold the same, or one that cannot be taken apart as asked."""


@dataclass(eq=False)
class Atom:
    """A set of `size` things that move together; `parents` are the atoms in each of whose entries they move by themselves."""

    size: int
    name: str = ""
    rank: int = 0  # which of two atoms that become one gives the name: the one with the lower rank, else the older
    parents: "tuple[Atom, ...]" = ()
    fixed: bool = False
    link: "Expr | Cases | None" = None  # what it was found to be
    number: int = field(default_factory=count().__next__)
    origin: int = -1  # number of the atom of which it was a factor or a part

    def __post_init__(self) -> None:
        if self.origin < 0:
            self.origin = self.number

    def __repr__(self) -> str:
        """Return the name and size."""
        return f"{'!' if self.fixed else ''}{self.name or 'a'}{self.number}:{self.size}"


@dataclass(frozen=True)
class Many:
    """Entries that are all alike, as behind a broadcast."""

    size: int


@dataclass(frozen=True)
class Product:
    """Axes merged into one, the outermost first."""

    factors: "tuple[Expr, ...]"


@dataclass(frozen=True)
class Sum:
    """Axes put one after the other."""

    parts: "tuple[Expr, ...]"


@dataclass(frozen=True)
class Cases:
    """What a nested atom is in each part of the sum that one of its parents is."""

    parent: Atom
    cases: "tuple[Expr, ...]"


Expr = Atom | Many | Product | Sum
Layout = list[Expr]  # one expression for each axis of a tensor


def size(expr: Expr) -> int:
    """Return the number of entries."""
    if isinstance(expr, Product):
        return prod(map(size, expr.factors))
    if isinstance(expr, Sum):
        return sum(map(size, expr.parts))
    return expr.size


def fixed(count: int, name: str = "") -> Expr:
    """Return entries that stay where they are."""
    return Many(1) if count == 1 else Atom(count, name, fixed=True)


def product(factors: Iterable[Expr]) -> Expr:
    """Merge axes, the outermost first."""
    flat: list[Expr] = []
    for factor in factors:
        for each in factor.factors if isinstance(factor, Product) else (factor,):
            if size(each) == 1:
                continue
            if isinstance(each, Many) and flat and isinstance(flat[-1], Many):
                flat[-1] = Many(flat[-1].size * each.size)
            else:
                flat.append(each)
    return flat[0] if len(flat) == 1 else Product(tuple(flat)) if flat else Many(1)


def concat(parts: Iterable[Expr]) -> Expr:
    """Put axes one after the other."""
    flat: list[Expr] = []
    for part in parts:
        for each in part.parts if isinstance(part, Sum) else (part,):
            if size(each):
                flat.append(each)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat)) if flat else Many(0)


def resolve(expr: Expr) -> Expr:
    """Return what an expression is by everything that is known now; a family of cases stays an atom."""
    if isinstance(expr, Product):
        return product(map(resolve, expr.factors))
    if isinstance(expr, Sum):
        return concat(map(resolve, expr.parts))
    if isinstance(expr, Atom) and expr.link is not None and not isinstance(expr.link, Cases):
        return resolve(expr.link)
    return expr


def leaves(expr: Expr) -> list[Atom]:
    """Return the atoms of which an expression consists, families of cases included."""
    expr = resolve(expr)
    if isinstance(expr, Product | Sum):
        return [atom for each in (expr.factors if isinstance(expr, Product) else expr.parts) for atom in leaves(each)]
    return [expr] if isinstance(expr, Atom) else []


def boundaries(parts: Sequence[Expr]) -> list[int]:
    """Return where each of the parts of a sum begins, and where the last ends."""
    result = [0]
    for part in parts:
        result.append(result[-1] + size(part))
    return result


def keys(expr: Expr) -> frozenset[object]:
    """Return what tells the coordinates of an expression from those of others."""
    expr = resolve(expr)
    if isinstance(expr, Product):
        return frozenset().union(*map(keys, expr.factors))
    if isinstance(expr, Sum):
        return frozenset({("sum", *map(keys, expr.parts))})
    if isinstance(expr, Many):
        return frozenset()
    if isinstance(expr.link, Cases):
        return frozenset({("cases", keys(expr.link.parent), *map(keys, expr.link.cases))})
    return frozenset({expr})


def parents(atom: Atom) -> list[Expr]:
    """Return the parents of an atom by what is known now: atoms that are no product, and sums."""
    found: list[Expr] = []
    for parent in atom.parents:
        now = resolve(parent)
        found += now.factors if isinstance(now, Product) else (now,)
    return [parent for parent in found if size(parent) > 1 and not isinstance(parent, Many)]


def scope(atom: Atom) -> frozenset[object]:
    """Return the coordinates on which an atom's order may depend."""
    return frozenset().union(*map(keys, parents(atom)))


def as_atom(expr: Expr) -> Atom:
    """Return an atom that stands for an expression."""
    return expr if isinstance(expr, Atom) else Atom(size(expr), link=expr)


def fix(expr: Expr) -> None:
    """Keep everything where it is."""
    for atom in leaves(expr):
        atom.fixed = True
        if isinstance(atom.link, Cases):
            for case in atom.link.cases:
                fix(case)


def is_free(expr: Expr) -> bool:
    """Whether anything in an expression may move."""
    for atom in leaves(expr):
        if isinstance(atom.link, Cases):
            if any(map(is_free, atom.link.cases)):
                return True
        elif not atom.fixed and atom.size > 1:
            return True
    return False
