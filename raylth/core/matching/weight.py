"""Finds the permutation that aligns network A with network B from their weights alone, without data.

Git Re-Basin (Ainsworth et al. 2023), Algorithm 1: coordinate descent over the groups, each step a linear assignment.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from raylth.common.seeding import derive_seed
from raylth.core.matching import MatchResult
from raylth.core.permutation import Permutation, PermutationSpec, identity_permutation
from raylth.core.permutation.spec import Part
from raylth.core.precision import precision

__all__ = ["match_weights"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of the data, not of the weights
ENTRIES = 2**24  # of a tensor that are copied at a time
LARGE = 2**16  # entries of a tensor that is not copied without need
PROGRESS = 1e-4  # of the inner product of the tensors that a step touches; one unit of 2,000 in its place is worth more

Place = tuple[str, int, int, Part]  # tensor, axis, first entry, part


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
    names = list(spec.groups)
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
    return MatchResult(Permutation(spec, descent.perms), {name: descent.cosine(name) for name in names})


def _walk(descent: "_Descent") -> None:
    """Settle each group in turn from the input to the output; back to where it began if that was better."""
    before, value = dict(descent.perms), descent.value()
    settled: set[str] = set()
    for name in descent.spec.groups:
        descent.settle(name, settled)
        settled.add(name)
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
        names = [name for name in spec.axes if not name.endswith(STATISTICS) and any(spec.axes[name])]
        self.a, self.b = ({name: _matrix(state[name]) for name in names} for state in (state_a, state_b))
        self.spec, self.perms = spec, dict(start.perms)
        self.norms = {name: (_dot(self.a[name], self.a[name]), _dot(self.b[name], self.b[name])) for name in names}
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
                first = 0
                for part in axis.parts if axis else ():
                    if part.group is not None:
                        self.places[part.group].append((name, dim, first, part))
                    first += part.length
        self.tensors = {group: list(dict.fromkeys(place[0] for place in places)) for group, places in self.places.items()}
        self.neighbours: dict[str, set[str]] = {}
        for group, tensors in self.tensors.items():
            near = {part.group for name in tensors for axis in spec.axes[name] if axis for part in axis.parts}
            twice = len(tensors) < len(self.places[group])  # then the group's own step is only linearised
            self.neighbours[group] = {other for other in near if other and (other != group or twice)}

    def improve(self, group: str) -> bool:
        """Solve one group given the others; returns whether the inner product rose."""
        gain = self._gain(group, self.places[group])
        columns = _assign(gain)
        before = float(gain.diagonal().sum(dtype=torch.float64))
        after = float(gain[torch.arange(len(gain)), columns].sum(dtype=torch.float64))
        if after <= before + PROGRESS * max(abs(before), float(gain.abs().max())):
            return False
        tensors, old = self.tensors[group], self.perms[group]
        if len(tensors) == len(self.places[group]):
            self._move(group, old[columns])
            return True
        was = sum(self.product(name) for name in tensors)  # two axes of a tensor are the group's: check the real objective
        self._move(group, old[columns])
        if sum(self.product(name) for name in tensors) <= was + PROGRESS * abs(was):
            self._move(group, old)
            return False
        return True

    def settle(self, group: str, settled: set[str]) -> None:
        """Solve one group from those tensors alone whose other units are settled, whatever that does to the whole."""
        places = []
        for place in self.places[group]:
            others = {part.group for axis in self.spec.axes[place[0]] if axis for part in axis.parts} - {group, None}
            if others <= settled:
                places.append(place)
        if places:
            self._move(group, self.perms[group][_assign(self._gain(group, places))])

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
            rows = order.pop(0, torch.arange(len(b)))
            pieces = rows.split(_count(b, 0))
            moved = (_take(self.a[name], {0: piece, **order}) for piece in pieces)
            self.products[name] = sum(map(_dot, b.split(_count(b, 0)), moved))
        return self.products[name]

    def cosine(self, group: str) -> float:
        """Return the cosine between B's weights and A's moved ones over the tensors that a group indexes."""
        tensors = self.tensors[group]
        norm_a, norm_b = (sum(self.norms[name][which] for name in tensors) for which in (0, 1))
        return sum(self.product(name) for name in tensors) / max((norm_a * norm_b) ** 0.5, 1e-30)

    def _move(self, group: str, perm: Tensor) -> None:
        self.perms[group] = perm
        for name in self.tensors[group]:
            self.products.pop(name, None)
            self.orders.pop(name, None)

    def _order(self, name: str) -> dict[int, Tensor]:
        """Return, for each axis of a tensor whose entries move, which of A's entries stand where."""
        if name not in self.orders:
            axes = enumerate(self.spec.axes[name])
            self.orders[name] = {dim: axis.index(self.perms) for dim, axis in axes if axis is not None}
        return dict(self.orders[name])

    def _gain(self, group: str, places: Iterable[Place]) -> Tensor:
        """Return (units, units) float32: the inner product of B's unit i with A's unit at position j.

        It is over `places`, and those where products were taken before. Places are only ever added: `settle` asks for some,
        `improve` for all.
        """
        size = self.spec.groups[group].size
        for place in places:
            name, dim = place[:2]
            b, order = self.b[name], self._order(name)
            order.pop(dim)
            gain = self.gains.setdefault(group, b.new_zeros(size, size))
            held = self.held.get(place)
            if held is None:
                along = max((other for other in range(b.ndim) if other != dim), key=lambda other: b.shape[other])
                self._add(gain, place, along, torch.arange(b.shape[along]), order)
            else:
                for along, index in order.items():
                    if index is not held[along] and len(moved := (index != held[along]).nonzero().flatten()):
                        self._add(gain, place, along, moved, {**held, along: index}, held)
                        held[along] = index
            self.held[place] = order
        return self.gains[group].index_select(1, self.perms[group].to(self.gains[group].device)).cpu()

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
        name, dim, start, part = place
        a, b = (state[name].narrow(dim, start, part.length) for state in (self.a, self.b))

        def ordered(by: Mapping[int, Tensor], piece: Tensor) -> Tensor:
            return _take(a, {**by, along: by[along][piece] if along in by else piece})

        for piece in entries.split(_count(b, along)):
            moved = ordered(order, piece) if before is None else ordered(order, piece) - ordered(before, piece)
            units_a, units_b = (_units(tensor, place) for tensor in (moved, _take(b, {along: piece})))
            torch.addmm(gain, units_b, units_a.T, out=gain)


def _matrix(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, with two axes at least."""
    tensor = tensor.detach().float()
    return tensor[:, None] if tensor.ndim == 1 else tensor


def _dot(one: Tensor, other: Tensor) -> float:
    """Return the inner product of two tensors, added up in float64."""
    one, other, size = one.reshape(-1), other.reshape(-1), 2**20
    pieces = ((one[place : place + size], other[place : place + size]) for place in range(0, len(one), size))
    return sum(torch.dot(x.double(), y.double()).item() for x, y in pieces)


def _count(tensor: Tensor, dim: int) -> int:
    """Return how many entries of an axis are copied at a time."""
    return max(1, ENTRIES * tensor.shape[dim] // max(1, tensor.numel()))


def _take(tensor: Tensor, order: Mapping[int, Tensor]) -> Tensor:
    """Return a tensor with the given entries of some axes."""
    for dim, index in order.items():
        if tensor.numel() > LARGE and torch.equal(index, torch.arange(first := int(index[0]), first + len(index))):
            tensor = tensor.narrow(dim, first, len(index))  # no copy
        else:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def _units(tensor: Tensor, place: Place) -> Tensor:
    """Return what a group's units own of a tensor that ends where they do: (units, everything else)."""
    _, dim, _, part = place
    return tensor.movedim(dim, 0).reshape(part.length // part.block, -1)


def _assign(gain: Tensor) -> Tensor:
    """Return, for each of B's units, the position whose unit of A it is given."""
    from scipy.optimize import linear_sum_assignment

    best = gain.argmax(1)
    if len(best.unique()) == len(best):  # each of B's units can have the one that fits it best
        return best
    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1].astype(np.int64))
