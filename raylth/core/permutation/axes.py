"""What flows along a traced graph's edges while its symmetry is derived: who owns each entry of each axis."""

import math
from collections.abc import Sequence

__all__ = ["FIXED", "Entries", "Layout", "Mismatch", "Segment", "Units", "reshape"]

FIXED = 0  # owner of everything that must stay where it is: inputs, logits

Segment = tuple[int, int]  # (owner, number of entries)
Entries = tuple[Segment, ...] | None  # of one axis, in order; None: positions, which nobody permutes
Layout = tuple[Entries, ...]  # one per axis


class Mismatch(ValueError):
    """Two axes that must hold the same units but cannot."""


class Units:
    """Union-find over owners of channels; each set of owners shares one number of units.

    An owner's entries are dealt to its units in consecutive runs of equal length. Where two layers can only move longer
    runs (grouped convolutions), the set's number of units falls until both agree. Where units meet the two halves of a
    concatenation, the set is cut in two.
    """

    def __init__(self) -> None:
        self._parent = [FIXED]
        self._units = [1]
        self._names = [""]
        self._cuts: dict[int, tuple[Segment, Segment]] = {}  # representative -> the two owners that it was cut into

    def expand(self, entries: Entries) -> tuple[Segment, ...]:
        """Return entries by the owners that they have now, whatever was cut since they were written down."""
        result: list[Segment] = []
        for owner, length in entries or ():
            cut = self._cuts.get(self.find(owner))
            if cut is None:
                result.append((owner, length))
            else:
                (left, units_left), (right, units_right) = cut
                first = length * units_left // (units_left + units_right)
                result += self.expand(((left, first), (right, length - first)))
        return tuple(result)

    def new(self, name: str, length: int) -> Entries:
        """Start an owner of `length` units, named after the module that writes it."""
        self._parent.append(len(self._parent))
        self._units.append(length)
        self._names.append(name)
        return ((len(self._parent) - 1, length),)

    def find(self, owner: int) -> int:
        """Return the representative of an owner's set: the oldest, and FIXED when any of them is fixed."""
        while self._parent[owner] != owner:
            self._parent[owner] = self._parent[self._parent[owner]]
            owner = self._parent[owner]
        if self._units[owner] == 1:
            return FIXED  # a single unit has nowhere to go
        return owner

    def units(self, owner: int) -> int:
        """Return how many units an owner's set has."""
        return self._units[self.find(owner)]

    def name(self, owner: int) -> str:
        """Return the name of an owner's set."""
        return self._names[self.find(owner)]

    def fix(self, entries: Entries) -> None:
        """Keep these entries where they are."""
        for owner, _ in self.expand(entries):
            self._parent[self.find(owner)] = FIXED

    def union(self, one: Entries, other: Entries) -> Entries:
        """Make two axes of the same length one; returns it. Raises Mismatch where they cannot be."""
        if one is None or other is None:
            self.fix(one)
            self.fix(other)
            return None
        joined: list[Segment] = []
        left, right = list(self.expand(one)), list(self.expand(other))
        while left and right:
            length = min(left[0][1], right[0][1])
            for side in (left, right):
                side[:1] = self._cut(side[0], length)
            # A cut may have gone through an owner that stands on the other side, too.
            left, right = list(self.expand(tuple(left))), list(self.expand(tuple(right)))
            if left[0][1] != right[0][1]:
                continue
            (a, length), (b, _) = left.pop(0), right.pop(0)
            root_a, root_b = self.find(a), self.find(b)
            if FIXED in (root_a, root_b):
                self.fix(((a, length), (b, length)))
            elif root_a != root_b:
                run = math.lcm(length // self._units[root_a], length // self._units[root_b])
                self._merge(root_a, root_b, length // run if length % run == 0 else 1)
            joined.append((a, length))
        if left or right:
            raise Mismatch("two axes of different lengths")
        return tuple(joined)

    def coarsen(self, entries: Entries, run: int) -> None:
        """Let these entries move only in runs of `run` that begin at its multiples."""
        start = 0
        for owner, length in self.expand(entries):
            root = self.find(owner)
            if root != FIXED:
                longer = math.lcm(length // self._units[root], run)
                if length % longer or start % run:
                    self.fix(((owner, length),))
                else:
                    self._units[root] = length // longer
            start += length

    def tie(self, segment: Segment, run: int, name: str, run_out: int) -> Segment:
        """Start an owner whose runs of `run_out` move with the runs of `run` of `segment`: a grouped convolution."""
        owner, length = segment
        out_length = length // run * run_out
        self.coarsen((segment,), run)
        root = self.find(owner)
        if root == FIXED:
            return FIXED, out_length
        fresh = self.new(name, out_length)
        assert fresh is not None
        self.coarsen(fresh, run_out)
        other = self.find(fresh[0][0])
        if other == FIXED:
            self.fix((segment,))
        else:
            self._merge(root, other, math.gcd(self._units[root], self._units[other]))
        return fresh[0][0], out_length

    def _merge(self, one: int, other: int, units: int) -> None:
        low, high = sorted((one, other))
        self._parent[high] = low  # the older name stays
        self._units[low] = units

    def _cut(self, segment: Segment, length: int) -> list[Segment]:
        """Cut the first `length` entries off a segment; its units then move on their own side of the cut only."""
        owner, whole = segment
        root = self.find(owner)
        if length == whole:
            return [segment]
        if root == FIXED:
            return [(FIXED, length), (FIXED, whole - length)]
        units = self._units[root]
        if length * units % whole:
            raise Mismatch(f"the units of {self._names[root]!r} are split in the middle of a block that must stay together")
        units_left = length * units // whole
        name = self._names[root]
        left, right = self.new(name, units_left), self.new(f"{name}[{units_left}]", units - units_left)
        assert left is not None
        assert right is not None
        self._cuts[root] = (left[0], right[0])
        return list(self.expand((segment,)))


def reshape(layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout | None:
    """Return the layout behind a flatten, view or unsqueeze from shape `before` to `after`; None where it is not known.

    Known is whatever keeps the units' entries in one run each: a channel axis that continues as it is, or that is merged
    with axes behind it.
    """
    result: list[Entries] = []
    i = j = 0
    while i < len(before) or j < len(after):
        first_i, first_j = i, j
        size_in = before[i] if i < len(before) else 1
        size_out = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while size_in != size_out:  # the smallest runs of axes, old and new, that hold the same entries
            if size_in < size_out and i < len(before):
                size_in *= before[i]
                i += 1
            elif size_out < size_in and j < len(after):
                size_out *= after[j]
                j += 1
            else:
                return None
        merged = _merge_axes(layout, before, after, range(first_i, i), range(first_j, j))
        if merged is None:
            return None
        result += merged
    return tuple(result)


def _merge_axes(layout: Layout, before: Sequence[int], after: Sequence[int], old: range, new: range) -> list[Entries] | None:
    """Lay out the axes `new`, which hold just the entries of the axes `old`."""
    owned = [axis for axis in old if layout[axis] is not None and before[axis] > 1]
    wide = [axis for axis in new if after[axis] > 1]
    if not owned:
        return [None] * len(new)
    real = [axis for axis in old if before[axis] > 1]
    if len(owned) > 1 or owned[0] != real[0] or len(wide) != 1:
        return None
    entries = layout[owned[0]]
    assert entries is not None
    block = after[wide[0]] // before[owned[0]]
    return [tuple((owner, length * block) for owner, length in entries) if axis == wide[0] else None for axis in new]
