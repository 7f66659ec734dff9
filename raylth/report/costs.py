"""What each arm's networks cost, beside their accuracy."""

import pandas as pd

from raylth.arms import rank
from raylth.report.tables import CELL, finished_arms

__all__ = ["cost_table"]

PARTS = {"epochs_a": "A", "epochs_imp": "IMP", "epochs_b": "B", "epochs_match": "match", "epochs": "own"}


def cost_table(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, sparsity, rewind_epoch, arm): mean test accuracy, and the epochs that such a network needs.

    `A`, `IMP` and `B` are epochs of the trainings that lead to it, `match` passes over the training split (a forward pass is
    a third of one), `own` its own training's, `total` their sum: what it costs alone, when nothing is shared with others.
    Empty for results that were written before epochs were counted.
    """
    arms = finished_arms(results)
    columns = [*CELL, "label", "accuracy", *PARTS.values(), "total", "n"]
    if "epochs_a" not in arms or (arms := arms.dropna(subset=["epochs_a"])).empty:
        return pd.DataFrame(columns=columns)
    groups = arms.astype(dict.fromkeys(PARTS, float)).groupby([*CELL, "arm", "label"], observed=True)
    table = groups.agg(
        accuracy=("test_accuracy", "mean"), **{name: (column, "mean") for column, name in PARTS.items()}, n=("key", "count")
    ).reset_index()
    table["total"] = table[list(PARTS.values())].sum(axis=1)
    ranks = table["arm"].map(rank)
    return table.assign(rank=ranks).sort_values([*CELL, "rank", "label"])[columns].reset_index(drop=True)
