"""Finds the permutation that aligns network A with network B from their weights alone, without data.

Git Re-Basin (Ainsworth et al. 2023), Algorithm 1: coordinate descent over the groups, each step a linear assignment.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from raylth.core.matching import MatchResult
from raylth.core.permutation import Permutation, PermutationSpec, identity_permutation
from raylth.core.precision import precision
from raylth.core.spec import Part
from raylth.seeding import derive_seed

__all__ = ["match_weights"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of the data, not of the weights
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
        descent = _settled(descent, _Descent(spec, state_a, state_b, identity_permutation(spec)))
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


def _settled(descent: "_Descent", identity: "_Descent") -> "_Descent":
    """Return the descent after a walk from the input to the output, or the identity's where that is better."""
    settled: set[str] = set()
    for name in descent.spec.groups:
        descent.settle(name, settled)
        settled.add(name)
    return descent if descent.value() > identity.value() else identity


class _Descent:
    """A's weights as the permutation found so far places them, and the steps that improve it."""

    def __init__(
        self,
        spec: PermutationSpec,
        state_a: Mapping[str, Tensor],
        state_b: Mapping[str, Tensor],
        start: Permutation,
    ) -> None:
        names = [name for name in spec.axes if not name.endswith(STATISTICS) and any(spec.axes[name])]
        self.b = {name: state_b[name].detach().float() for name in names}
        moved = start.apply({name: state_a[name].detach().float() for name in names})
        self.moved = moved
        self.spec, self.perms = spec, dict(start.perms)
        for which, tensors in (("A", moved), ("B", self.b)):
            for name, tensor in tensors.items():
                if not bool(tensor.isfinite().all()):
                    raise ValueError(f"{name}: weights of {which} are NaN or infinite")
        self.places: dict[str, list[Place]] = {name: [] for name in spec.groups}
        for name in names:
            for dim, axis in enumerate(spec.axes[name]):
                first = 0
                for part in axis.parts if axis else ():
                    if part.group is not None:
                        self.places[part.group].append((name, dim, first, part))
                    first += part.length
        self.neighbours: dict[str, set[str]] = {}
        for group, places in self.places.items():
            tensors_of = {place[0] for place in places}
            near = {part.group for name in tensors_of for axis in spec.axes[name] if axis for part in axis.parts}
            twice = len(tensors_of) < len(places)  # then the group's own step is only linearised
            self.neighbours[group] = {other for other in near if other and (other != group or twice)}

    def improve(self, group: str) -> bool:
        """Solve one group given the others; returns whether the inner product rose."""
        size = self.spec.groups[group].size
        gain = self._gain(self.places[group])
        columns = _assign(gain)
        before = float(gain.diagonal().sum(dtype=torch.float64))
        after = float(gain[torch.arange(size), columns].sum(dtype=torch.float64))
        if after <= before + PROGRESS * max(abs(before), float(gain.abs().max())):
            return False
        tensors = {place[0] for place in self.places[group]}
        old = {name: self.moved[name] for name in tensors}
        for place in self.places[group]:
            self.moved[place[0]] = _move(self.moved[place[0]], place, columns)
        if len(tensors) < len(self.places[group]):  # the group stands on two axes of a tensor: check the real objective
            was, now = (sum(float((self.b[n] * t[n]).sum(dtype=torch.float64)) for n in tensors) for t in (old, self.moved))
            if now <= was + PROGRESS * abs(was):
                self.moved.update(old)
                return False
        self.perms[group] = self.perms[group][columns]
        return True

    def settle(self, group: str, settled: set[str]) -> None:
        """Solve one group from those tensors alone whose other units are settled, whatever that does to the whole."""
        places = []
        for place in self.places[group]:
            others = {part.group for axis in self.spec.axes[place[0]] if axis for part in axis.parts} - {group, None}
            if others <= settled:
                places.append(place)
        if places:
            columns = _assign(self._gain(places))
            for place in self.places[group]:
                self.moved[place[0]] = _move(self.moved[place[0]], place, columns)
            self.perms[group] = self.perms[group][columns]

    def value(self) -> float:
        """Return the inner product of B's weights with A's moved ones."""
        return sum(float((self.b[name] * self.moved[name]).sum(dtype=torch.float64)) for name in self.b)

    def _gain(self, places: list[Place]) -> Tensor:
        """Return (units, units) float32: the inner product of B's unit i with A's unit at position j, over some places."""
        units_b = torch.cat([_units(self.b[place[0]], place) for place in places], dim=1)
        units_a = torch.cat([_units(self.moved[place[0]], place) for place in places], dim=1)
        return (units_b @ units_a.T).cpu()

    def cosine(self, group: str) -> float:
        """Return the cosine between B's weights and A's moved ones over the tensors that a group indexes."""
        product = norm_a = norm_b = 0.0
        for name in {place[0] for place in self.places[group]}:
            a, b = self.moved[name].double(), self.b[name].double()
            product += float((a * b).sum())
            norm_a += float(a.square().sum())
            norm_b += float(b.square().sum())
        return product / max((norm_a * norm_b) ** 0.5, 1e-30)


def _units(tensor: Tensor, place: Place) -> Tensor:
    """Return what a group's units own at one place of a tensor: (units, everything else)."""
    _, dim, start, part = place
    piece = tensor.narrow(dim, start, part.length).movedim(dim, 0)
    return piece.reshape(part.length // part.block, -1)


def _assign(gain: Tensor) -> Tensor:
    """Return, for each of B's units, the position whose unit of A it is given."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1].astype(np.int64))


def _move(tensor: Tensor, place: Place, columns: Tensor) -> Tensor:
    """Return the tensor with a group's units at one place in a new order."""
    _, dim, start, part = place
    index = torch.arange(tensor.shape[dim])
    entries = columns[:, None] * part.block + torch.arange(part.block)
    index[start : start + part.length] = start + entries.flatten()
    return tensor.index_select(dim, index.to(tensor.device))
