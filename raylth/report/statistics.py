"""Differences between arms, paired: two arms of one cell and replicate share data, networks and mask."""

import pandas as pd
from scipy import stats

from raylth.report.tables import CELL, finished_arms

__all__ = ["CONFIDENCE", "paired_differences"]

CONFIDENCE = 0.95


def paired_differences(results: pd.DataFrame, first: str = "permuted", second: str = "naive") -> pd.DataFrame:
    """Return per cell the difference of test accuracy between two arms, percentage points, paired by replicate.

    One row per (width, sparsity, rewind_epoch, label of the first arm) that has both: `difference` (mean over pairs), `low`
    and `high` (95 % confidence interval, Student's t with n - 1 degrees of freedom; missing for one pair), and `n` pairs.
    """
    arms = finished_arms(results)
    columns = [*CELL, "label", "difference", "low", "high", "n"]
    ours = arms[arms["arm"] == first][[*CELL, "replicate", "label", "test_accuracy"]]
    theirs = arms[arms["arm"] == second][[*CELL, "replicate", "test_accuracy"]]
    pairs = ours.merge(theirs, on=[*CELL, "replicate"], suffixes=("", "_second"))
    pairs["difference"] = pairs["test_accuracy"] - pairs["test_accuracy_second"]
    rows = []
    for cell, group in pairs.groupby([*CELL, "label"], observed=True):
        values = group["difference"]
        low = high = float("nan")
        if len(values) > 1:
            half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.sem()
            low, high = values.mean() - half, values.mean() + half
        rows.append((*cell, values.mean(), low, high, len(values)))
    return pd.DataFrame(rows, columns=columns)
