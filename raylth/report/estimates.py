"""The statistics of few replicates: intervals, Welch's comparison, ratios, Holm's correction, and what n can show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from raylth.report.sources import paper_accuracy

__all__ = [
    "CONFIDENCE", "POWER", "Estimate", "apart", "fieller", "holm", "mean_of", "power_of", "power_table", "smallest_effect",
    "welch",
]  # fmt: skip

CONFIDENCE = 0.95
POWER = 0.8
NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """An estimate that follows Student's t: its value, standard error, and degrees of freedom (0: no interval)."""

    value: float
    error: float = NAN
    df: float = 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval; missing without degrees of freedom."""
        half = self.critical * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided, against 0; missing without degrees of freedom."""
        if self.df <= 0:
            return NAN
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * special.stdtr(self.df, -abs(self.value) / self.error))

    @property
    def critical(self) -> float:
        """How many standard errors the interval reaches to each side."""
        return float(special.stdtrit(self.df, (1 + CONFIDENCE) / 2)) if self.df > 0 else NAN

    @property
    def smallest(self) -> float:
        """The smallest effect that this error and these degrees of freedom show with a power of 80 %."""
        return noncentrality(self.df) * self.error if self.df > 0 else NAN


def mean_of(values: "Sequence[float] | pd.Series[float]") -> Estimate:
    """Return the mean of independent values, with n - 1 degrees of freedom."""
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[~np.isnan(numbers)]
    if len(numbers) < 2:
        return Estimate(float(numbers[0]) if len(numbers) else NAN)
    return Estimate(float(numbers.mean()), float(numbers.std(ddof=1)) / math.sqrt(len(numbers)), len(numbers) - 1.0)


def welch(ours: "Sequence[float] | pd.Series[float]", theirs: "Sequence[float] | pd.Series[float]") -> Estimate:
    """Return the difference of two means of independent values, whose variances may differ (Welch 1947)."""
    return apart(mean_of(ours), mean_of(theirs))


def apart(first: Estimate, second: Estimate) -> Estimate:
    """Return the difference of two independent estimates, with Welch's degrees of freedom."""
    difference = first.value - second.value
    if not (first.df and second.df):
        return Estimate(difference)
    a, b = first.error**2, second.error**2
    df = (a + b) ** 2 / (a**2 / first.df + b**2 / second.df) if a + b else first.df + second.df
    return Estimate(difference, math.sqrt(a + b), df)


def fieller(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the ratio of two paired means and its 95 % interval (Fieller 1954), or None.

    The interval is the set of all ratios r for which a t-test does not refuse mean(above - r * below) = 0. It is bounded only
    where the mean below differs from 0; None where that mean is not significantly above 0, and for fewer than two pairs.
    """
    x, y = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    bottom = mean_of(y)
    if not bottom.df or bottom.interval[0] <= 0:
        return None
    (vxx, vxy), (_, vyy) = np.cov(x, y) / len(x) * bottom.critical**2
    a, b, c = y.mean() ** 2 - vyy, x.mean() * y.mean() - vxy, x.mean() ** 2 - vxx
    root = math.sqrt(max(0.0, b * b - a * c))
    return float(x.mean() / y.mean()), float((b - root) / a), float((b + root) / a)


def holm(p_values: "pd.Series[float]") -> "pd.Series[float]":
    """Return p-values corrected for all tests of a family (Holm 1979); a missing one is no test."""
    ordered = p_values.dropna().sort_values(kind="stable")
    factors = np.arange(len(ordered), 0, -1)
    corrected = (ordered * factors).cummax().clip(upper=1.0)
    return corrected.reindex(p_values.index).astype(float)


def noncentrality(df: float, power: float = POWER) -> float:
    """Return how many standard errors an effect must have for a two-sided 5 % t-test to show it with this power."""
    from scipy import optimize

    high = 4.0
    while _power(high, df) < power:
        high *= 2
    return float(optimize.brentq(lambda effect: _power(effect, df) - power, 0.0, high))


def _power(effect: float, df: float) -> float:
    from scipy import stats  # it takes two thirds of a second, and a report of single replicates has no use for it

    critical = special.stdtrit(df, (1 + CONFIDENCE) / 2)
    upper, lower = (float(stats.nct.sf(critical, df, sign * effect)) for sign in (1, -1))
    return upper + lower


def power_of(effect: float, deviation: float, n: int) -> float:
    """Return the probability that a paired two-sided 5 % t-test of n pairs shows an effect, whose pairs deviate by that."""
    return _power(abs(effect) / deviation * math.sqrt(n), n - 1.0)


def smallest_effect(n: int, deviation: float = 1.0, power: float = POWER) -> float:
    """Return the smallest effect that n pairs show with this power in a paired two-sided 5 % t-test.

    In the unit of `deviation`, the standard deviation of the pairs' differences.
    """
    return noncentrality(n - 1.0, power) * deviation / math.sqrt(n)


def power_table(numbers: Sequence[int] = (3, 5, 10)) -> pd.DataFrame:
    """Return a row per number of replicates: the smallest effect with a power of 80 % (in standard deviations of the paired
    difference), and the power over the cells of the paper's Table 5.

    That is for one cell, permuted against naive, by the paper's own means and deviations, the arms taken as independent:
    `mean_power`, and `cells_above`, the share of cells that reach 80 %; not corrected for the number of cells.
    """
    cells = (
        paper_accuracy().query("table == 5").pivot(index=["sparsity", "rewind_epoch"], columns="arm", values=["mean", "std"])
    )
    effects = cells["mean", "permuted"] - cells["mean", "naive"]
    deviations = np.hypot(cells["std", "permuted"], cells["std", "naive"])
    rows = []
    for n in numbers:
        powers = [power_of(effect, deviation, n) for effect, deviation in zip(effects, deviations, strict=True)]
        rows.append((n, smallest_effect(n), float(np.mean(powers)), float(np.mean(np.array(powers) >= POWER))))
    return pd.DataFrame(rows, columns=["n", "smallest_effect", "mean_power", "cells_above"])
