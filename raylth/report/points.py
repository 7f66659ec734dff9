"""The points of figures as tables: what a picture of the report and a page that draws in the browser both show."""

from collections.abc import Sequence

import pandas as pd

from raylth.report.estimates import mean_of
from raylth.report.repeats import ON, crossed_mean
from raylth.report.tables import CELL, accuracy_table, alike, dense_networks, finished_arms

__all__ = ["LINE", "MEASURES", "accuracy_points", "curve_points", "dense_points", "line_points"]

LINE = ["between", "width", "match_method", "sparsity", "rewind_epoch", "imp_round"]  # what a kind of line is
MEASURES = {"test_accuracy": "test accuracy (%)", "train_loss": "training loss (nats)"}  # of an epoch of training
NAMES = [*CELL, "arm", "label"]


def accuracy_points(results: pd.DataFrame) -> pd.DataFrame:
    """Return `accuracy_table` with the 95 % interval of each mean, `low` and `high`, in percent; missing for one network.

    Student's t over replicates; after a search with repeats it counts how those differ, too (`crossed_mean`). Raises
    ValueError as `accuracy_table` does.
    """
    cells = accuracy_table(results)
    groups = finished_arms(results).groupby(NAMES, observed=True)
    ends = [(*cell, *crossed_mean(rows.set_index(ON)["test_accuracy"]).interval) for cell, rows in groups]
    found = pd.DataFrame(ends, columns=[*NAMES, "low", "high"]).astype({"low": float, "high": float})
    return cells.merge(found.astype({name: cells[name].dtype for name in NAMES}), on=NAMES, how="left")


def dense_points(results: pd.DataFrame) -> pd.DataFrame:
    """Return the dense networks' test accuracy by width, percent: `mean`, `std`, its 95 % interval `low` and `high`, `n`."""
    rows = []
    for width, networks in dense_networks(results).groupby("width"):
        accuracy = networks["test_accuracy"].astype(float)
        estimate = mean_of(accuracy)
        rows.append((width, estimate.value, accuracy.std(), *estimate.interval, len(accuracy)))
    return pd.DataFrame(rows, columns=["width", "mean", "std", "low", "high", "n"])


def curve_points(results: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return what training reaches epoch by epoch: a row per cell, arm, `measure` and `epoch`, with `mean`, `std` and `n`.

    Means are over finished replicates; the dense networks have the label "dense" and neither sparsity nor rewind point.
    `measure` is one of `MEASURES`; what was measured once in a training is no curve, and left out.
    """
    dense = dense_networks(results).assign(label="dense", sparsity=float("nan"), rewind_epoch=pd.NA)
    arms = finished_arms(results).drop_duplicates(["key", "label"])
    kinds = {"sparsity": float, "rewind_epoch": "Int64", "arm": "string"}
    networks = pd.concat([rows[[*NAMES, "key"]].astype(kinds) for rows in (dense, arms)])
    if networks.empty or curves.empty:  # columns without values have no type, and do not merge
        return pd.DataFrame(columns=[*NAMES, "measure", "epoch", "mean", "std", "n"])
    points = curves.reindex(columns=["key", "epoch", *MEASURES]).drop_duplicates(["key", "epoch"])
    long = points.melt(["key", "epoch"], var_name="measure").dropna(subset=["value"])
    long = long[long.groupby(["key", "measure"])["epoch"].transform("size") > 1]
    rows = networks.merge(long, on="key")
    found = rows.groupby([*NAMES, "measure", "epoch"], dropna=False)["value"].agg(mean="mean", std="std", n="count")
    return found.reset_index()


def line_points(lines: pd.DataFrame, cell: Sequence[str] = LINE) -> pd.DataFrame:
    """Return the test error along lines, percent: a row per kind of line, `correction` and `alpha`, in the order of kinds.

    `mean`, `low` and `high` (the range) are over the `n` replicates. Raises ValueError as `alike` does.
    """
    point = [*cell, "correction", "alpha"]
    test = lines[lines["split"] == "test"].drop_duplicates(["key", "correction", "alpha"])
    groups = alike(test, point).groupby(point, dropna=False)["error"]
    return groups.agg(mean="mean", low="min", high="max", n="count").reset_index()
