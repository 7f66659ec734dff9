"""Differences between arms, paired: two arms of one cell and replicate share data, networks and mask."""

import pandas as pd

from raylth.report.repeats import CONFIDENCE, difference_of
from raylth.report.tables import CELL, finished_arms

__all__ = ["CONFIDENCE", "paired_differences"]


def paired_differences(results: pd.DataFrame, first: str = "permuted", second: str = "naive") -> pd.DataFrame:
    """Return per cell the difference of test accuracy between two arms, percentage points, paired by replicate.

    One row per (width, sparsity, rewind_epoch, label of the first arm) that has both: `difference` (mean over pairs), `low`
    and `high` (95 % confidence interval, Student's t with n - 1 degrees of freedom; missing for one pair), and `n` pairs.
    After a search the interval counts the variance between its repeats, too, and winners that do not share their dense
    networks and mask are not paired (`difference_of`).
    """
    arms = finished_arms(results)
    rows = []
    for cell, ours in arms[arms["arm"] == first].groupby([*CELL, "label"], observed=True):
        theirs = arms[(arms["arm"] == second) & (arms[list(CELL)] == list(cell[: len(CELL)])).all(axis=1)]
        found = difference_of(ours, theirs)
        if found is not None:
            rows.append((*cell, found.mean.value, *found.mean.interval, found.mean.pairs))
    return pd.DataFrame(rows, columns=[*CELL, "label", "difference", "low", "high", "n"])
