"""Finds the permutation that aligns network A with network B from their weights alone, without data.

Git Re-Basin (Ainsworth et al. 2023), Algorithm 1: coordinate descent over the groups, each step a linear assignment.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from raylth.common.seeding import derive_seed
from raylth.core.matching import MatchResult
from raylth.core.matching.assignment import assign_nested, trees
from raylth.core.matching.units import (
    Place,
    as_matrix,
    by_block,
    by_unit,
    compared,
    entries_of,
    inner_product,
    moved_by,
    num_at_once,
    taken,
)
from raylth.core.permutation import Permutation, PermutationSpec, identity_permutation
from raylth.core.permutation.spec import Part
from raylth.core.precision import precision

__all__ = ["match_weights"]

PROGRESS = 1e-4  # of the inner product of the tensors that a step touches; one unit of 2,000 in its place is worth more


@precision("float32")
def match_weights(
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    spec: PermutationSpec,
    seed: int,
    *,
    start: Permutation | None = None,
    max_sweeps: int = 100,
) -> MatchResult:
    """Find the permutation of A's units that maximises the inner product of A's weights with B's.

    Groups are visited in an order drawn from `seed`, each solved exactly given the others, until none improves by more
    than `PROGRESS`; the inner product never falls. It begins at `start`; without one, at what a walk from the network's
    input gives, where each group is matched by the tensors that join it to groups already matched, or at the identity if
    that is better. The walk is not in the paper: from the identity alone, a permuted copy of a wide network is often not
    recovered. The result's objective is, per group, the cosine between B's weights and the moved weights of A over all
    tensors that the group indexes, in [-1, 1].
    Raises ValueError for states of another architecture, or weights that are not finite.
    """
    for state in (state_a, state_b):
        spec.check(state)
    descent = _Descent(spec, state_a, state_b, start or identity_permutation(spec))
    if start is None:
        _walk(descent)
    generator = torch.Generator().manual_seed(derive_seed(seed, "weight_matching"))
    names = list(descent.trees)
    waiting = set(names)  # groups whose neighbours changed since they were last solved
    for _ in range(max_sweeps):
        if not waiting:
            break
        for place in torch.randperm(len(names), generator=generator).tolist():
            name = names[place]
            if name in waiting:
                waiting.discard(name)
                if descent.improve(name):
                    waiting |= descent.neighbours[name]
    return MatchResult(Permutation(spec, descent.perms), {name: descent.cosine(name) for name in spec.groups})


def _walk(descent: "_Descent") -> None:
    """Settle each group in turn from the input to the output; back to where it began if that was better."""
    before, value = dict(descent.perms), descent.value()
    settled: set[str] = set()
    for name, members in descent.trees.items():
        descent.settle(name, settled)
        settled |= set(members)
    if descent.value() <= value:
        descent.go_back(before)


class _Descent:
    """The permutation found so far, and the steps that improve it.

    A step needs the inner product of each of B's units with each of A's, (units, units). A's weights stay where they are:
    the products are kept in their order, so that a group's own move changes none of them, and a neighbour's only what the
    moved units add.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        state_a: Mapping[str, Tensor],
        state_b: Mapping[str, Tensor],
        start: Permutation,
    ) -> None:
        names = compared(spec)
        self.a, self.b = ({name: as_matrix(state[name]) for name in names} for state in (state_a, state_b))
        self.spec, self.perms, self.trees = spec, dict(start.perms), trees(spec)
        self.norms = {
            name: (inner_product(self.a[name], self.a[name]), inner_product(self.b[name], self.b[name])) for name in names
        }
        for name, norms in self.norms.items():
            for which, norm in zip("AB", norms, strict=True):
                if not math.isfinite(norm):
                    raise ValueError(f"{name}: weights of {which} are NaN or infinite")
        self.products: dict[str, float] = {}  # tensor -> inner product, until one of its groups moves
        self.orders: dict[str, dict[int, Tensor]] = {}  # tensor -> where A's entries stand, as long
        self.gains: dict[str, Tensor] = {}  # group -> B's units by A's, over those places that `held` names
        self.held: dict[Place, dict[int, Tensor]] = {}  # place -> how the other axes lay when its products were taken
        self.places: dict[str, list[Place]] = {name: [] for name in spec.groups}
        for name in names:
            for dim, axis in enumerate(spec.axes[name]):
                for part in axis.parts if axis else ():
                    for group in filter(None, part.groups):
                        self._file(name, dim, part, group)
        self.tensors = {group: list(dict.fromkeys(place[0] for place in places)) for group, places in self.places.items()}
        self.root = {member: root for root, members in self.trees.items() for member in members}
        self.neighbours: dict[str, set[str]] = {}
        for root, members in self.trees.items():
            touched = {name for member in members for name in self.tensors[member]}
            near = {self.root[other] for name in touched for other in self._groups(name)}
            twice = any(len(self.tensors[member]) < len(self.places[member]) for member in members)
            self.neighbours[root] = {other for other in near if other != root or twice}  # twice: a step is only linearised

    def _file(self, name: str, dim: int, part: Part, group: str) -> None:
        """File where a group's units are, unless those of a group within it are there, too: that one's say more."""
        inside = [other for other in filter(None, part.groups) if group in self.spec.groups[other].within]
        within = [outer for outer in self.spec.groups[group].within if outer in part.groups]
        if not inside:
            self.places[group].append((name, dim, part.led_by([*within, group])))

    def _groups(self, name: str) -> set[str]:
        """Return the groups whose units a tensor holds."""
        return {group for axis in self.spec.axes[name] if axis for group in axis.groups}

    def _is_coupled(self, place: Place, group: str) -> bool:
        """Whether another axis of a tensor holds units of the same tree: a step of the whole tree cannot see those."""
        name, dim, part = place
        others = [axis for other, axis in enumerate(self.spec.axes[name]) if axis and other != dim]
        tree = set(self.trees[self.root[group]])
        own = tree - ({group} if len(tree) == 1 else set())
        beside = set(part.groups) - {group, *self.spec.groups[group].within}
        return bool(part.beside) or bool(beside & tree) or any(axis.groups & own for axis in others)

    def _is_mixed(self, place: Place, group: str) -> bool:
        """Whether other groups' units share a group's own entries, on the same axis."""
        return bool(set(place[2].groups) - {None, group, *self.spec.groups[group].within})

    def improve(self, root: str) -> bool:
        """Solve one group, with those within it, given the others; returns whether the inner product rose."""
        if len(self.trees[root]) > 1:
            return self._improve_tree(root)
        gain = self._gain(root, self.places[root])
        columns = _assign(gain)
        before = float(gain.diagonal().sum(dtype=torch.float64))
        after = float(gain[torch.arange(len(gain)), columns].sum(dtype=torch.float64))
        if after <= before + PROGRESS * max(abs(before), float(gain.abs().max())):
            return False
        moved = {root: self.perms[root][columns]}
        if len(self.tensors[root]) == len(self.places[root]):
            self._move(moved)
            return True
        return self._move_if_better(moved)  # two axes of a tensor are the group's: check the real objective

    def _improve_tree(self, root: str) -> bool:
        """Solve a tree of groups by what their tensors say one by one, then each of the inner groups given all others."""
        has_risen = self._move_if_better(self._solved(root, lambda place, group: not self._is_coupled(place, group)))
        for name in self.trees[root][1:]:
            has_risen |= self._move_if_better({name: self.perms[name][self._inside(name)]}) if self.places[name] else False
        return has_risen

    def _solved(self, root: str, accept: Callable[[Place, str], bool]) -> dict[str, Tensor]:
        """Return the best permutations of a tree by the places that are accepted."""
        gains = {}
        for name in self.trees[root]:
            if places := [place for place in self.places[name] if accept(place, name)]:
                gains[name] = self._gain(name, places).double().numpy()
        columns, _ = assign_nested(self.spec, self.trees[root], gains)
        return {name: self.perms[name][columns[name]] for name in self.trees[root]}

    def _inside(self, name: str) -> Tensor:
        """Return the best order of a group's units inside what they are within, which stays, given everything else."""
        inner = self.spec.inner_size(name)
        size = self.spec.groups[name].size
        gain = torch.zeros(size // inner, inner, inner)
        for place in self.places[name]:
            moved = moved_by(self.spec, place[0], self.a[place[0]], self.perms)
            units_b, units_a = (by_block(tensor, place, size, inner) for tensor in (self.b[place[0]], moved))
            gain += torch.bmm(units_b, units_a.mT).cpu()
        columns = torch.stack([_assign(block) for block in gain])
        return (torch.arange(len(gain))[:, None] * inner + columns).flatten()

    def _move_if_better(self, moved: Mapping[str, Tensor]) -> bool:
        """Take permutations of some groups, unless the inner product falls or does not rise by much."""
        if all(torch.equal(self.perms[name], perm) for name, perm in moved.items()):
            return False
        touched = {name: None for group in moved for name in self.tensors[group]}
        old = {name: self.perms[name] for name in moved}
        was = sum(self.product(name) for name in touched)
        self._move(moved)
        if sum(self.product(name) for name in touched) <= was + PROGRESS * abs(was):
            self._move(old)
            return False
        return True

    def settle(self, root: str, settled: set[str]) -> None:
        """Solve one group from those tensors alone whose other units are settled, whatever that does to the whole."""

        def is_settled(place: Place, group: str) -> bool:
            others = self._groups(place[0]) - set(self.trees[root])
            return others <= settled and not (len(self.trees[root]) > 1 and self._is_coupled(place, group))

        if len(self.trees[root]) > 1:
            self._move(self._solved(root, is_settled))
        elif places := [place for place in self.places[root] if is_settled(place, root)]:
            self._move({root: self.perms[root][_assign(self._gain(root, places))]})

    def go_back(self, perms: Mapping[str, Tensor]) -> None:
        """Take another permutation, and forget what was found out about this one."""
        self.perms = dict(perms)
        for known in (self.products, self.orders, self.gains, self.held):
            known.clear()

    def value(self) -> float:
        """Return the inner product of B's weights with A's moved ones."""
        return sum(self.product(name) for name in self.b)

    def product(self, name: str) -> float:
        """Return what one tensor adds to the inner product."""
        if name not in self.products:
            order, b = self._order(name), self.b[name]
            if any(axis and axis.beside for axis in self.spec.axes[name]):
                self.products[name] = inner_product(b, moved_by(self.spec, name, self.a[name], self.perms))
                return self.products[name]
            rows = order.pop(0, torch.arange(len(b)))
            pieces = rows.split(num_at_once(b, 0))
            moved = (taken(self.a[name], {0: piece, **order}) for piece in pieces)
            self.products[name] = sum(map(inner_product, b.split(num_at_once(b, 0)), moved))
        return self.products[name]

    def cosine(self, group: str) -> float:
        """Return the cosine between B's weights and A's moved ones over the tensors that a group indexes."""
        tensors = self.tensors[group]
        norm_a, norm_b = (sum(self.norms[name][which] for name in tensors) for which in (0, 1))
        return sum(self.product(name) for name in tensors) / max((norm_a * norm_b) ** 0.5, 1e-30)

    def _move(self, perms: Mapping[str, Tensor]) -> None:
        self.perms |= perms
        for group in perms:
            for name in self.tensors[group]:
                self.products.pop(name, None)
                self.orders.pop(name, None)

    def _order(self, name: str) -> dict[int, Tensor]:
        """Return, for each axis of a tensor whose entries move, which of A's entries stand where."""
        if name not in self.orders:
            orders = {dim: self.spec.order(name, dim, self.perms) for dim in range(len(self.spec.axes[name]))}
            self.orders[name] = {dim: order for dim, order in orders.items() if order is not None and order.ndim == 1}
        return dict(self.orders[name])

    def _gain(self, group: str, places: Sequence[Place]) -> Tensor:
        """Return (units, units) float32: the inner product of B's unit i with A's unit at position j.

        It is over `places`, and those where products were taken before. Places are only ever added: `settle` asks for some,
        `improve` for all.
        """
        size, device = self.spec.groups[group].size, self.b[places[0][0]].device
        gain, mixed = self.gains.setdefault(group, torch.zeros(size, size, device=device)), torch.zeros(size, size)
        for place in places:
            if self._is_mixed(place, group):  # what it says depends on where those others stand now
                moved = moved_by(self.spec, place[0], self.a[place[0]], self.perms)
                units_b, units_a = (
                    by_unit(entries_of(each, *place[1:]), place[1], size) for each in (self.b[place[0]], moved)
                )
                mixed += (units_b @ units_a.T).cpu()
                continue
            name, dim = place[:2]
            b, order = self.b[name], self._order(name)
            order.pop(dim)
            held = self.held.get(place)
            if held is None:
                along = max((other for other in range(b.ndim) if other != dim), key=lambda other: b.shape[other])
                self._add(gain, place, along, torch.arange(b.shape[along]), order)
            else:
                for along, index in order.items():
                    if index is not held[along] and len(changed := (index != held[along]).nonzero().flatten()):
                        self._add(gain, place, along, changed, {**held, along: index}, held)
                        held[along] = index
            self.held[place] = order
        return gain.index_select(1, self.perms[group].to(device)).cpu() + mixed

    def _add(
        self,
        gain: Tensor,
        place: Place,
        along: int,
        entries: Tensor,
        order: Mapping[int, Tensor],
        before: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Add one place's products over some entries of the axis `along`: of A's weights in an order, less those `before`."""
        name, dim, part = place
        a, b = (entries_of(state[name], dim, part) for state in (self.a, self.b))

        def ordered(by: Mapping[int, Tensor], piece: Tensor) -> Tensor:
            return taken(a, {**by, along: by[along][piece] if along in by else piece})

        for piece in entries.split(num_at_once(b, along)):
            moved = ordered(order, piece) if before is None else ordered(order, piece) - ordered(before, piece)
            units_a, units_b = (by_unit(tensor, dim, len(gain)) for tensor in (moved, taken(b, {along: piece})))
            torch.addmm(gain, units_b, units_a.T, out=gain)


def _assign(gain: Tensor) -> Tensor:
    """Return, for each of B's units, the position whose unit of A it is given."""
    from scipy.optimize import linear_sum_assignment

    best = gain.argmax(1)
    if len(best.unique()) == len(best):  # each of B's units can have the one that fits it best
        return best
    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1].astype(np.int64))
