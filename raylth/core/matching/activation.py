"""Finds the permutation that aligns network A with network B, by the activations of their units.

Paper, section 4.1; the matching of Li et al. (2015) as used by REPAIR: the permutation of each group maximises the
summed Pearson correlation between the units of A and B, a linear assignment problem.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from raylth.core.batches import Batches, inputs_of
from raylth.core.matching.assignment import assign, assign_nested, trees
from raylth.core.matching.observer import Observer, rows
from raylth.core.permutation import Group, Permutation, PermutationSpec, Site
from raylth.core.precision import precision

__all__ = ["CrossMoments", "MatchResult", "assign", "match_activations"]


@dataclass(frozen=True)
class MatchResult:
    """A permutation and how good it is: the mean correlation of matched units, per group, in [-1, 1]."""

    permutation: Permutation
    objective: dict[str, float]


BLOCK = 1024  # rows whose products are summed in float32 before they go into the float64 totals
LARGEST = 2**22  # entries of one network that are worked on at a time


class CrossMoments:
    """Streaming moments of C units of A and of B over all samples and positions.

    Products are taken in float32, `BLOCK` rows at a time, on activations shifted by the first batch's means so that
    nothing cancels, and accumulated in float64. Memory: 8 * (C * C + 4 * C) bytes that stay, whatever the number of
    samples, and about 64 MiB while a batch is added.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shift: Tensor | None = None  # (2C,) float32
        self.first: Tensor | None = None  # (2C,) float64, sum of A's and B's shifted units
        self.second: Tensor | None = None  # (2C,) float64, sum of their squares
        self.cross: Tensor | None = None  # (C, C) float64, sum of B_i * A_j

    def add(self, rows_a: Tensor, rows_b: Tensor) -> None:
        """Add one batch of activations, (n, C) rows of A and of B."""
        if rows_a.shape != rows_b.shape:
            raise ValueError(f"A and B must have units of the same shape, not {rows_a.shape} and {rows_b.shape}")
        size = rows_a.shape[1]
        rows = [units.to(torch.float32) for units in (rows_a, rows_b)]
        if self.shift is None or self.first is None or self.second is None or self.cross is None:
            self.shift = torch.cat([units.mean(0) for units in rows])
            zeros = self.shift.new_zeros(2 * size, dtype=torch.float64)
            self.first, self.second, self.cross = zeros, zeros.clone(), zeros.new_zeros(size, size)
        chunk = BLOCK * max(1, LARGEST // (size * max(size, BLOCK)))
        for start in range(0, len(rows_a), chunk):
            a, b = (
                _blocks(units[start : start + chunk] - shift)
                for units, shift in zip(rows, self.shift.split(size), strict=True)
            )
            self.first += torch.cat([a.sum(1), b.sum(1)], dim=1).sum(0, dtype=torch.float64)
            self.second += torch.cat([(a * a).sum(1), (b * b).sum(1)], dim=1).sum(0, dtype=torch.float64)
            self.cross += torch.bmm(b.mT, a).sum(0, dtype=torch.float64)
        self.count += len(rows_a)

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


@precision("float32")
def match_activations(model_a: nn.Module, model_b: nn.Module, spec: PermutationSpec, batches: Batches) -> MatchResult:
    """Find the permutation of A's units that best lines up with B's, in one pass over the data for all groups.

    `batches` yields network inputs (B, *in_shape), or (inputs, labels) as a DataLoader does; both networks run in eval mode
    and are left as they were. Units are compared at the spec's sites (`PermutationSpec.watch`), over all samples and
    positions with equal weight; a unit of several channels, as in a grouped convolution, by the sum over its channels.
    Memory, beyond one forward pass of each network on one batch: `CrossMoments` of every group, whatever the number of
    samples. Units within others, as in attention heads, are matched together with those (`assign_nested`).

    Raises ValueError for no data, activations that are not finite (with the group's name), or different architectures.
    """
    for model in (model_a, model_b):
        spec.check(model.state_dict())
    inside = {name for group in spec.groups.values() for name in group.within}
    groups = [group for group in spec.groups.values() if group.site is not None and group.name not in inside]
    sites, beside = _sites(spec, groups)
    observer = Observer([model_a, model_b], sites, spec.program)
    moments = [CrossMoments() for _ in groups]
    for x in inputs_of(batches, model_b):
        for number, (output_a, output_b) in observer.run(x):
            moments[number].add(rows(output_a, sites[number]), rows(output_b.to(output_a.device), sites[number]))
    correlations = {}
    for group, moment in zip(groups, moments, strict=True):
        try:
            found = moment.correlation()
            correlations[group.name] = found if group.name in beside else _by_unit(found, group.size)
        except ValueError as error:
            raise ValueError(f"group {group.name!r}: {error}") from error
    return _assigned(spec, correlations, beside)


def _sites(spec: PermutationSpec, groups: Sequence[Group]) -> tuple[list[Site], dict[str, str]]:
    """Return where units are compared, and for those whose entries another group within the same orders, that group."""
    sites, beside = [], {}
    for group in groups:
        assert group.site is not None
        names = (*group.within, group.name)
        others = [name for name in group.site.part.groups if name and name not in names]
        part = group.site.part.led_by([*names, *others])
        sites.append(replace(group.site, part=part))
        if len(others) == 1 and spec.groups[others[0]].within == group.within:
            beside[group.name] = others[0]
    for name, other in list(beside.items()):
        if other in beside or other not in [group.name for group in groups]:
            del beside[name]  # neither can be solved first
    return sites, beside


def _assigned(spec: PermutationSpec, correlations: dict[str, np.ndarray], beside: dict[str, str]) -> MatchResult:
    """Solve every group's assignment; a group that others are within has the mean of theirs as its objective."""
    perms: dict[str, Tensor] = {}
    objective: dict[str, float] = {}
    for members in trees(spec).values():
        if len(members) == 1 and members[0] in correlations:
            perms[members[0]], objective[members[0]] = assign(correlations[members[0]])
            continue
        found, values = assign_nested(spec, members, correlations, beside)
        perms |= found
        for name in members:
            measured = [each for each in members if each in correlations and name in (each, *spec.groups[each].within)]
            count = sum(spec.groups[each].size for each in measured)
            objective[name] = sum(values[each] for each in measured) / max(count, 1)
    return MatchResult(Permutation(spec, {name: perms[name] for name in spec.groups}), objective)


def _blocks(rows: Tensor) -> Tensor:
    """Cut rows (n, C) into (ceil(n / BLOCK), BLOCK, C), the last block filled up with zeros."""
    n, size = rows.shape
    if n <= BLOCK:
        return rows[None]
    missing = -n % BLOCK
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, size)])
    return rows.view(-1, BLOCK, size)


def _by_unit(correlation: np.ndarray, units: int) -> np.ndarray:
    """Average the correlations of the channels of each unit, each with its counterpart: (C, C) to (units, units)."""
    block = len(correlation) // units
    if block == 1:
        return correlation
    return np.einsum("itjt->ij", correlation.reshape(units, block, units, block)) / block
