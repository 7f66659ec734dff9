"""Means and differences over pairs of networks, and over a search's repeats where there are several."""

import math
from dataclasses import dataclass

import pandas as pd

from raylth.report.estimates import Estimate, apart, mean_of

__all__ = ["ON", "PAIR_KEY", "Difference", "crossed_mean", "difference_of", "pair_keys_agree"]

ON = ["repeat", "replicate"]
PAIR_KEY = "pair_key"  # of what is behind an arm: equal for two arms whose difference is one of pairs


@dataclass(frozen=True)
class Difference:
    """A difference of two arms in one cell, percentage points."""

    estimate: Estimate
    pairs: int  # networks of the smaller arm in each repeat, where the arms are no pairs
    is_paired: bool
    by_repeat: tuple[float, ...]  # the mean difference of each repeat, in their order


def crossed_mean(values: "pd.Series[float]") -> Estimate:
    """Return the mean of values that are indexed by (repeat, replicate), with an error that counts both.

    One repeat: `mean_of`. Several: every repeat's winners are trained on the same pairs, so repeats and pairs are crossed and
    a value is mean + repeat + pair + rest. With the mean squares MR, MP and ME of the two-way layout without replication, R
    repeats and N pairs, the mean's variance is max(MR + MP - ME, MR, MP) / (R N), with Satterthwaite's degrees of freedom
    from MR and MP (R - 1 and N - 1). Two simpler ones hold too little: simulated with 3 repeats, 10 pairs and equal
    deviations of the three parts, a t interval over all R N values, as if they were independent, covers the mean in 61 % of
    all cases; one over the repeats' means, where repeats do not differ, in 84 %, since it takes what is peculiar to the pairs
    for certain. This one covers it in 93 to 99 % (two repeats: 90 to 99 %). Pairs that a repeat lacks are left out. One pair
    of several repeats has no error.
    """
    table = values.astype(float).unstack("replicate")
    if len(table) < 2:
        return mean_of(values)
    whole = table.dropna(axis="columns")
    repeats, pairs = whole.shape
    if pairs < 2:
        return Estimate(float((whole if pairs else table).stack().mean()))
    cells = whole.to_numpy()
    mean = float(cells.mean())
    by_pair = float(repeats * cells.mean(axis=0).var(ddof=1))
    by_repeat = float(pairs * cells.mean(axis=1).var(ddof=1))
    rest = cells - cells.mean(axis=0) - cells.mean(axis=1, keepdims=True) + mean
    left = float((rest**2).sum() / ((repeats - 1) * (pairs - 1)))
    total = max(by_repeat + by_pair - left, by_repeat, by_pair)
    spread = by_repeat**2 / (repeats - 1) + by_pair**2 / (pairs - 1)
    degrees = max(1.0, total**2 / spread) if spread else pairs - 1.0
    return Estimate(mean, math.sqrt(total / (repeats * pairs)), degrees)


def pair_keys_agree(both: pd.DataFrame) -> bool:
    """Whether all rows of two arms side by side are pairs; those without keys are of sweeps whose arms share all."""
    keys = both.reindex(columns=[PAIR_KEY, f"{PAIR_KEY}_second"]).dropna()
    return bool((keys[PAIR_KEY] == keys[f"{PAIR_KEY}_second"]).all())


def difference_of(first: pd.DataFrame, second: pd.DataFrame, *, is_paired: bool | None = None) -> Difference | None:
    """Return first minus second of two arms of one cell, rows as `finished_arms` gives them; None when nothing is in both.

    Paired by repeat and replicate where both arms share their dense networks and their mask (`pair_key`), or where the caller
    says so. Where they do not, as after a search that changed those, the arms' means are compared (Welch).
    """
    both = first.merge(second, on=ON, suffixes=("", "_second")).set_index(ON)
    if both.empty:
        return None
    differences = (both["test_accuracy"] - both["test_accuracy_second"]).astype(float)
    by_repeat = tuple(float(value) for value in differences.groupby("repeat").mean())
    if pair_keys_agree(both) if is_paired is None else is_paired:
        table = differences.unstack("replicate")
        return Difference(crossed_mean(differences), table.shape[1], True, by_repeat)
    means = [crossed_mean(arm.set_index(ON)["test_accuracy"]) for arm in (first, second)]
    pairs = min(arm["replicate"].nunique() for arm in (first, second))
    return Difference(apart(*means), pairs, False, by_repeat)
