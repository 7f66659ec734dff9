"""Finds the permutation that aligns network A with network B, by the activations of their units.

Paper, section 4.1; the matching of Li et al. (2015) as used by REPAIR: the permutation of each group maximises the
summed Pearson correlation between the units of A and B, a linear assignment problem.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from raylth.core.derive import capture_sites
from raylth.core.permutation import Permutation, PermutationSpec

__all__ = ["CrossMoments", "MatchResult", "assign", "match_activations"]


@dataclass(frozen=True)
class MatchResult:
    """A permutation and how good it is: the mean correlation of matched units, per group, in [-1, 1]."""

    permutation: Permutation
    objective: dict[str, float]


BLOCK = 1024  # rows whose products are summed in float32 before they go into the float64 totals


class CrossMoments:
    """Streaming moments of C units of A and of B over all samples and positions.

    Products are taken in float32, `BLOCK` rows at a time, on activations shifted by the first batch's means so that
    nothing cancels, and accumulated in float64. Memory: 8 * (C * C + 4 * C) bytes, whatever the number of samples.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shift: Tensor | None = None  # (2C,) float32
        self.first: Tensor | None = None  # (2C,) float64, sum of A's and B's shifted units
        self.second: Tensor | None = None  # (2C,) float64, sum of their squares
        self.cross: Tensor | None = None  # (C, C) float64, sum of B_i * A_j

    def add(self, units_a: Tensor, units_b: Tensor) -> None:
        """Add one batch of activations, (B, C) or (B, C, ...), of the same shape for A and B."""
        if units_a.shape != units_b.shape:
            raise ValueError(f"A and B must have units of the same shape, not {units_a.shape} and {units_b.shape}")
        rows_a, rows_b = _rows(units_a), _rows(units_b)  # (n, C)
        both = torch.cat([rows_a, rows_b], dim=1).to(torch.float32)  # (n, 2C)
        if self.shift is None:
            self.shift = both.mean(0)
        both = both - self.shift
        size = rows_a.shape[1]
        if self.first is None or self.second is None or self.cross is None:
            zeros = both.new_zeros(2 * size, dtype=torch.float64)
            self.first, self.second, self.cross = zeros, zeros.clone(), zeros.new_zeros(size, size)
        for block in both.split(BLOCK):
            self.first += block.sum(0, dtype=torch.float64)
            self.second += block.square().sum(0, dtype=torch.float64)
            self.cross += block[:, size:].T @ block[:, :size]
        self.count += len(both)

    def correlation(self) -> np.ndarray:
        """Return the (C, C) float64 Pearson correlations of B's unit i (row) with A's unit j (column).

        A dead unit (no variance beyond rounding) correlates 0 with everything. Raises ValueError when nothing was
        added, or when the activations were not finite.
        """
        if self.first is None or self.second is None or self.cross is None:
            raise ValueError("no samples: matching needs at least one batch")
        first, second, cross = (moment.cpu().numpy() for moment in (self.first, self.second, self.cross))
        if not (np.isfinite(second).all() and np.isfinite(cross).all()):
            raise ValueError("activations are NaN or infinite")
        size = len(cross)
        mean = first / self.count
        covariance = cross / self.count - np.outer(mean[size:], mean[:size])
        variance = np.maximum(second / self.count - mean**2, 0.0)
        scale = (second / self.count) + np.square(self.shift.cpu().numpy().astype(np.float64))  # type: ignore[union-attr]
        deviation = np.where(variance > 1e-12 * scale, np.sqrt(variance), 0.0)
        inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
        return covariance * inverse[size:, None] * inverse[None, :size]


def assign(correlation: np.ndarray) -> tuple[Tensor, float]:
    """Solve the assignment: returns perm (C,), where perm[i] is A's unit for position i of B, and the mean correlation."""
    rows, columns = linear_sum_assignment(correlation, maximize=True)
    return torch.from_numpy(columns.astype(np.int64)), float(correlation[rows, columns].mean())


@torch.inference_mode()
def match_activations(
    model_a: nn.Module, model_b: nn.Module, spec: PermutationSpec, batches: Iterable[Tensor]
) -> MatchResult:
    """Find the permutation of A's units that best lines up with B's, in one pass over the data for all groups.

    `batches` yields network inputs (B, *in_shape); both networks run in eval mode and are left as they were. Units are
    compared after their activation function, over all samples and positions with equal weight.

    Raises ValueError for no data, activations that are not finite (with the group's name), or different architectures.
    """
    modes = model_a.training, model_b.training
    model_a.eval()
    model_b.eval()
    watch_a, watch_b = capture_sites(model_a, spec), capture_sites(model_b, spec)
    moments = {name: CrossMoments() for name in spec.groups}
    for x in batches:
        for name, units_a, units_b in zip(spec.groups, watch_a(x), watch_b(x), strict=True):
            moments[name].add(units_a, units_b)
    model_a.train(modes[0])
    model_b.train(modes[1])
    perms, objective = {}, {}
    for name, moment in moments.items():
        try:
            perms[name], objective[name] = assign(moment.correlation())
        except ValueError as error:
            raise ValueError(f"group {name!r}: {error}") from error
    return MatchResult(Permutation(spec, perms), objective)


def _rows(units: Tensor) -> Tensor:
    """Bring the channel axis last and flatten the rest: (B, C, ...) -> (n, C)."""
    return units if units.ndim == 2 else units.movedim(1, -1).flatten(0, -2)
