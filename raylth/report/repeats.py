"""Means and differences over pairs of networks, and over a search's repeats where there are several."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

__all__ = ["Difference", "Mean", "crossed_mean", "difference_of"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean with the variance that it has itself, and the degrees of freedom with which that is known."""

    value: float
    variance: float  # missing where it cannot be known
    degrees: float
    pairs: int
    repeats: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval (Student's t); missing where the variance is."""
        half = stats.t.ppf((1 + CONFIDENCE) / 2, self.degrees) * np.sqrt(self.variance)
        return self.value - float(half), self.value + float(half)


@dataclass(frozen=True)
class Difference:
    """A difference of two arms in one cell, percentage points."""

    mean: Mean
    is_paired: bool
    by_repeat: tuple[float, ...]  # the mean difference of each repeat, in their order


def crossed_mean(values: pd.DataFrame, column: str) -> Mean:
    """Return the mean of `column` over `repeat` and `replicate`, with a variance that counts both.

    One repeat: the usual mean over pairs, n - 1 degrees of freedom. Several: every repeat's winners are trained on the same
    pairs, so repeats and pairs are crossed and a value is mean + repeat + pair + rest. With the mean squares MR, MP and ME of
    the two-way layout without replication, R repeats and N pairs, the mean's variance is max(MR + MP - ME, MR, MP) / (R N),
    with Satterthwaite's degrees of freedom from MR and MP (R - 1 and N - 1). Two simpler ones hold
    too little: simulated with 3 repeats, 10 pairs and equal deviations of the three parts, a t interval over all R N values,
    as if they were independent, covers the mean in 61 % of all cases; one over the repeats' means, where repeats do not
    differ, in 84 %, since it takes what is peculiar to the pairs for certain. This one covers it in 93 to 99 % (two repeats:
    90 to 99 %). Pairs that a repeat lacks are left out. The variance is missing for one pair.
    """
    table = values.pivot(index="repeat", columns="replicate", values=column).astype(float)
    whole = table.dropna(axis="columns")
    cells = (whole if whole.shape[1] else table).to_numpy()
    repeats, pairs = cells.shape
    mean, missing = float(np.nanmean(cells)), float("nan")
    if pairs < 2 or np.isnan(cells).any():
        return Mean(mean, missing, missing, pairs, repeats)
    by_pair = float(repeats * cells.mean(axis=0).var(ddof=1))
    if repeats == 1:
        return Mean(mean, by_pair / pairs, pairs - 1, pairs, repeats)
    by_repeat = float(pairs * cells.mean(axis=1).var(ddof=1))
    rest = cells - cells.mean(axis=0) - cells.mean(axis=1, keepdims=True) + mean
    left = float((rest**2).sum() / ((repeats - 1) * (pairs - 1)))
    total = max(by_repeat + by_pair - left, by_repeat, by_pair)
    spread = by_repeat**2 / (repeats - 1) + by_pair**2 / (pairs - 1)
    degrees = max(1.0, total**2 / spread) if spread else pairs - 1.0
    return Mean(mean, total / (repeats * pairs), degrees, pairs, repeats)


def difference_of(first: pd.DataFrame, second: pd.DataFrame) -> Difference | None:
    """Return first minus second of two arms of one cell, rows as `finished_arms` gives them; None when nothing is in both.

    Paired by repeat and replicate where both arms share their dense networks and their mask (`pair_key`; rows that have none
    are of sweeps that share them). Where they do not, as after a search that changed those, the arms' means are compared,
    with Welch's degrees of freedom.
    """
    on = ["repeat", "replicate"]
    both = first.merge(second, on=on, suffixes=("", "_second"))
    if both.empty:
        return None
    both["difference"] = both["test_accuracy"] - both["test_accuracy_second"]
    by_repeat = tuple(float(value) for value in both.groupby("repeat")["difference"].mean())
    keys = both.reindex(columns=["pair_key", "pair_key_second"]).dropna()
    if (keys["pair_key"] == keys["pair_key_second"]).all():
        return Difference(crossed_mean(both, "difference"), True, by_repeat)
    ours, theirs = (crossed_mean(rows, "test_accuracy") for rows in (first, second))
    variance = ours.variance + theirs.variance
    parts = ours.variance**2 / ours.degrees + theirs.variance**2 / theirs.degrees
    degrees = variance**2 / parts if parts else min(ours.degrees, theirs.degrees)
    pairs, repeats = min(ours.pairs, theirs.pairs), min(ours.repeats, theirs.repeats)
    return Difference(Mean(ours.value - theirs.value, variance, degrees, pairs, repeats), False, by_repeat)
