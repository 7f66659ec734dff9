"""Finds permutations of several networks to one order of their units, the universe, from their weights alone.

C2M3 (Crisostomi et al. 2024), Algorithm 1: all groups of all networks at once, by Frank-Wolfe.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from raylth.common.seeding import derive_seed
from raylth.core.matching.assignment import assign_nested, trees
from raylth.core.matching.relaxed import Soft, as_soft, blocks_of, moved_softly
from raylth.core.matching.units import compared, inner_product
from raylth.core.matching.weight import match_weights
from raylth.core.permutation import Permutation, PermutationSpec, identity_permutation
from raylth.core.precision import precision

__all__ = ["Relaxation", "Universe", "ascend", "match_cycle_consistent", "pairwise_product"]

State = Mapping[str, Tensor]
BLENDS = (0.5, 0.9)  # shares of the barycentre in what Frank-Wolfe starts from
PROGRESS = 1e-5  # of the objective: a step of Frank-Wolfe that gains less is the last
MOST_STEPS = 100
MOST_SWEEPS = 100


@dataclass(frozen=True)
class Universe:
    """Permutations of n networks to one order of units: that of the first, whose permutation is the identity."""

    permutations: tuple[Permutation, ...]
    objective: float  # sum over pairs of networks of the inner products of their moved weights
    cosine: float  # mean over pairs of the cosine of their moved weights

    def between(self, a: int, b: int) -> Permutation:
        """Return the permutation from network `a` to network `b`: to the universe, and from there back by b's inverse.

        They compose exactly: `between(j, k).compose(between(i, j))` is `between(i, k)`, unit by unit.
        """
        return self.permutations[b].inverse().compose(self.permutations[a])


@precision("float32")
def match_cycle_consistent(states: Sequence[State], spec: PermutationSpec, seed: int) -> Universe:
    """Find a permutation of each of n networks that maximises the sum over pairs of <pi_i(theta_i), pi_j(theta_j)>.

    Frank-Wolfe runs from each of `BLENDS`: every network matched to one of them by `match_weights`, blended with the
    barycentre of all permutations, where the paper starts at the identity. What it ends at is rounded to permutations and
    improved by exact assignments (`ascend`); so is the start itself. The best by the objective is returned, hence never below
    that of matching all networks to the one. Units of groups within others move with those. The networks' order does not
    matter to the objective: they are visited in one that follows from their weights.
    Raises ValueError for fewer than two networks, states of another architecture, or weights that are not finite.
    """
    if len(states) < 2:
        raise ValueError(f"a universe is of two networks or more, found {len(states)}")
    for state in states:
        spec.check(state)
    order = sorted(range(len(states)), key=lambda number: _digest(states[number], spec))
    ordered = [states[number] for number in order]
    reference = ordered[0]
    star = [identity_permutation(spec)]
    star += [match_weights(state, reference, spec, seed).permutation for state in ordered[1:]]
    relaxation = Relaxation(ordered, spec)
    starts = [star, *(relaxation.rounded(relaxation.climb(relaxation.blended(star, share))) for share in BLENDS)]
    ended = [ascend(ordered, start, seed) for start in starts]
    best, values = max(ended, key=lambda found: found[1][-1])
    found = dict(zip(order, best, strict=True))
    to_first = found[0].inverse()
    permutations = tuple(to_first.compose(found[number]) for number in range(len(states)))
    return Universe(permutations, values[-1], mean_cosine(_moved(states, permutations), spec))


def ascend(
    states: Sequence[State], start: Sequence[Permutation], seed: int, max_sweeps: int = MOST_SWEEPS
) -> tuple[list[Permutation], list[float]]:
    """Match each network in turn to the sum of the others as they are moved, until none moves: the objective never falls.

    Returns the permutations, and the objective before the first sweep and after each.
    """
    found, spec = list(start), start[0].spec
    moved = _moved(states, found)
    values = [pairwise_product(moved, spec)]
    for sweep in range(max_sweeps):
        has_moved = False
        for number, state in enumerate(states):
            others = _sum([each for place, each in enumerate(moved) if place != number])
            visits = derive_seed(seed, "cycle_consistent", sweep, number)
            better = match_weights(state, others, spec, visits, start=found[number]).permutation
            if any(better.distance(found[number]).values()):
                found[number], moved[number], has_moved = better, better.apply(state), True
        values.append(pairwise_product(moved, spec))
        if not has_moved:
            break
    return found, values


def pairwise_product(states: Sequence[State], spec: PermutationSpec) -> float:
    """Return the sum over pairs of networks of the inner products of their weights, without statistics of batch norm."""
    return sum(_pairs(tensors, tensors) for tensors in (_stacked(states, name) for name in compared(spec)))


def mean_cosine(states: Sequence[State], spec: PermutationSpec) -> float:
    """Return the mean over pairs of networks of the cosine of their weights, without statistics of batch norm."""
    names = compared(spec)

    def product(one: State, other: State) -> float:
        return sum(inner_product(one[name].float(), other[name].float()) for name in names)

    norms = [max(product(state, state), 1e-30) ** 0.5 for state in states]
    pairs = list(combinations(range(len(states)), 2))
    return sum(product(states[i], states[j]) / (norms[i] * norms[j]) for i, j in pairs) / len(pairs)


class Relaxation:
    """The objective over doubly stochastic matrices in the place of permutations, of n networks at once."""

    def __init__(self, states: Sequence[State], spec: PermutationSpec) -> None:
        self.spec, self.trees = spec, trees(spec)
        self.tensors = {name: _stacked(states, name) for name in compared(spec)}  # (networks, ...)
        self.blocks = {name: blocks_of(spec, name, tensor.shape[1:]) for name, tensor in self.tensors.items()}
        self.degrees = {name: max(len(block.factors) for block in blocks) for name, blocks in self.blocks.items()}

    def blended(self, permutations: Sequence[Permutation], share: float) -> dict[str, Tensor]:
        """Return permutations as matrices, blended with the mean of all permutations of their groups."""
        soft = as_soft([each.perms for each in permutations])
        return {name: (1 - share) * matrix + share * self._barycentre(name).to(matrix) for name, matrix in soft.items()}

    def climb(self, soft: Soft, max_steps: int = MOST_STEPS) -> Soft:
        """Go from `soft` towards the permutations that the gradient prefers, as far as the objective rises most, and again.

        The objective along a step is a polynomial, so its maximum is exact; it never falls.
        """
        device = next(iter(self.tensors.values())).device
        soft = {name: matrix.to(device) for name, matrix in soft.items()}
        for _ in range(max_steps):
            value, slopes, moved = self._slopes(soft)
            towards = {name: matrix.to(device) for name, matrix in as_soft(self._best(slopes)).items()}
            step, rise = self._line(soft, towards, moved)
            if rise <= PROGRESS * abs(value):
                break
            soft = _between(soft, towards, step)
        return soft

    def rounded(self, soft: Soft) -> list[Permutation]:
        """Return the permutations that are nearest to matrices."""
        return [Permutation(self.spec, perms) for perms in self._best(soft)]

    def _barycentre(self, name: str) -> Tensor:
        """Return the mean of all permutations of a group: uniform, since any unit can stand anywhere."""
        size = self.spec.groups[name].size
        return torch.full((size, size), 1 / size)

    def _best(self, similarity: Soft) -> list[dict[str, Tensor]]:
        """Return for each network the permutations with the largest inner product with its matrices: exact, also nested."""
        tables = {name: matrix.double().numpy(force=True) for name, matrix in similarity.items()}
        found = []
        for number in range(len(next(iter(self.tensors.values())))):
            perms: dict[str, Tensor] = {}
            for members in self.trees.values():
                given = {name: tables[name][number] for name in members if name in tables}
                perms |= assign_nested(self.spec, members, given)[0]
            found.append(perms)
        return found

    def _slopes(self, soft: Soft) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
        """Return the objective, its gradient by the matrices, and the moved tensors."""
        leaves = {name: matrix.detach().clone().requires_grad_() for name, matrix in soft.items()}
        value, moved = 0.0, {}
        for name, blocks in self.blocks.items():
            with torch.enable_grad():
                found = moved_softly(self.tensors[name], blocks, leaves)
                ((found.sum(0).square().sum() - found.square().sum()) / 2).backward()
            moved[name] = found.detach()
            value += _pairs(moved[name], moved[name])
        return value, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, moved

    def _line(self, soft: Soft, towards: Soft, moved: Mapping[str, Tensor]) -> tuple[float, float]:
        """Return the step in [0, 1] at which the objective is largest, and by how much it rises.

        A moved tensor is a polynomial in the step, of as many degrees as matrices move it: it is known at as many points.
        """
        total = np.zeros(2 * max(self.degrees.values(), default=0) + 1)
        for name, blocks in self.blocks.items():
            degree, tensors = self.degrees[name], self.tensors[name]
            along = [moved[name]]
            for place in range(1, degree + 1):
                along.append(moved_softly(tensors, blocks, _between(soft, towards, place / degree)))
            gram = [[_pairs(one, other) for other in along] for one in along]
            total[: 2 * degree + 1] += np.einsum("ij,ijk->k", gram, _products(degree))
        rise = Polynomial(total) - total[0]
        roots = np.asarray(rise.deriv().roots(), dtype=np.complex128)
        inner = [float(root) for root in roots.real[np.abs(roots.imag) < 1e-9] if 0 < root < 1]
        step = max([*inner, 1.0], key=lambda at: float(rise(at)))
        return step, float(rise(step))


@lru_cache
def _products(degree: int) -> np.ndarray:
    """Return the products of Lagrange's polynomials of `degree` + 1 equal steps from 0 to 1: (i, j, coefficient)."""
    points = np.linspace(0, 1, degree + 1)
    rest = [np.delete(points, place) for place in range(degree + 1)]
    basis = [Polynomial.fromroots(each) / np.prod(at - each) for at, each in zip(points, rest, strict=True)]
    return np.array([[(one * other).coef for other in basis] for one in basis])


def _between(one: Soft, other: Soft, step: float) -> dict[str, Tensor]:
    return {name: torch.lerp(matrix, other[name], step) for name, matrix in one.items()}


def _moved(states: Sequence[State], permutations: Sequence[Permutation]) -> list[State]:
    return [each.apply(state) for each, state in zip(permutations, states, strict=True)]


def _stacked(states: Sequence[State], name: str) -> Tensor:
    return torch.stack([state[name].detach().float() for state in states])


def _pairs(ones: Tensor, others: Tensor) -> float:
    """Return half of the sum over i != j of the inner products of `ones[i]` with `others[j]`, (networks, ...) each."""
    return (inner_product(ones.sum(0), others.sum(0)) - inner_product(ones, others)) / 2


def _sum(states: Sequence[State]) -> dict[str, Tensor]:
    """Return the sum of states; what is no floating-point number is the first's."""
    first = states[0]
    return {
        name: torch.stack([state[name] for state in states]).sum(0) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


def _digest(state: State, spec: PermutationSpec) -> bytes:
    """Return a hash of the weights that are compared."""
    digest = hashlib.sha256()
    for name in compared(spec):
        digest.update(state[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()
