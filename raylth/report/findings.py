"""What a sweep shows, as sentences with numbers."""

import pandas as pd

from raylth.report.statistics import paired_differences
from raylth.report.tables import CELL, accuracy_table, dense_networks, matched_lines

__all__ = ["findings"]

DENSE = {"A", "B", "pi(A)", "pi^-1(B)"}  # ends that are of no cell


def findings(
    results: pd.DataFrame,
    barriers: pd.DataFrame,
    ensembles: pd.DataFrame | None = None,
    masks: pd.DataFrame | None = None,
) -> list[str]:
    """Return one sentence per thing that the finished networks show; none when nothing can be said yet."""
    cells = accuracy_table(results)
    said = [*_permuted_against_naive(results), *_recovered(cells)]
    dense = dense_networks(results)
    for width, rows in dense.groupby("width"):
        where = f" of width {width:g}" if dense["width"].nunique() > 1 else ""
        said.append(f"The dense networks{where} reach {rows['test_accuracy'].mean():.1f} % (n = {len(rows)}).")
    said += _barriers(barriers)
    said += [] if ensembles is None else _ensembles(ensembles)
    return said + ([] if masks is None else _masks(masks))


def _masks(masks: pd.DataFrame) -> list[str]:
    """How much of B's own mask A's has before and after the permutation, beyond chance."""
    said = []
    pairs = masks[(masks["layer"] == "all") & (masks["other"] == "B")]
    for (width, sparsity), rows in pairs.groupby(["width", "sparsity"], observed=True):
        means = 100 * rows.groupby("mask")[["jaccard", "expected_jaccard"]].mean()
        if {"A", "pi(A)"} <= set(means.index):
            said.append(
                f"Of the weights that either keeps, pi(mask_A) and B's own mask share {means.loc['pi(A)', 'jaccard']:.1f} %, "
                f"mask_A and B's {means.loc['A', 'jaccard']:.1f} %; chance gives {means.loc['A', 'expected_jaccard']:.1f} % "
                f"(sparsity {sparsity:g}, width {width:g})."
            )
    return said


def _permuted_against_naive(results: pd.DataFrame) -> list[str]:
    said = []
    for label, pairs in paired_differences(results).groupby("label", observed=True):
        ahead = (pairs["difference"] > 0).sum()
        sure = (pairs["low"] > 0).sum()
        best = pairs.loc[pairs["difference"].idxmax()]
        text = f"{label} beats naive in {ahead} of {len(pairs)} cells, on average by {pairs['difference'].mean():.1f} points"
        text += f", most at {_cell(best)}{_width(best['width'], pairs)}: {best['difference']:+.1f} points."
        if pairs["n"].max() > 1:
            text += f" In {sure} of them the 95 % confidence interval of the paired difference lies above 0."
        said.append(text)
    return said


def _recovered(cells: pd.DataFrame) -> list[str]:
    """How much of the distance between naive and lth the permutation makes up for."""
    said = []
    table = cells.pivot_table(index=list(CELL), columns="label", values="mean", observed=True)
    for label in [label for label in table if label.startswith("permuted")]:
        if {"lth", "naive"} <= set(table):
            gap = table["lth"] - table["naive"]
            share = ((table[label] - table["naive"]) / gap)[gap > 1.0].dropna()
            if len(share):
                said.append(
                    f"Where lth is more than a point ahead of naive, {label} makes up for {100 * share.median():.0f} % of "
                    f"the distance (median of {len(share)} cells, from {100 * share.min():.0f} to {100 * share.max():.0f} %)."
                )
    return said


def _barriers(barriers: pd.DataFrame) -> list[str]:
    said = []
    test = barriers[barriers["split"] == "test"]
    for (width, method, epoch), rows in matched_lines(test).groupby(["width", "match_method", "match_epoch"], observed=True):
        where = f"matched by {method} at epoch {epoch:.0f}{_width(width, test)}"
        said.append(f"Between pi(A) and B, {where}, {_rise(rows)}.")
    cell = ["between", "width", "sparsity", "rewind_epoch"]
    others = test[test["carries_masks"].isna() & test["imp_round"].isna()].drop_duplicates(["key", "correction"])
    for (between, width, sparsity, rewind), rows in others.groupby(cell, dropna=False):
        where = f" at sparsity {sparsity:g}, k = {rewind}" if set(between.split(" - ")) - DENSE else ""
        said.append(f"Between {between.replace(' - ', ' and ')}{where}{_width(width, test)}, {_rise(rows)}.")
    return said


def _width(width: float, rows: pd.DataFrame) -> str:
    return f", width {width:g}" if rows["width"].nunique() > 1 else ""


def _rise(rows: pd.DataFrame) -> str:
    """Say what the error does on lines, by correction."""
    means = rows.groupby("correction", sort=False)["error_barrier"].mean()
    how = {"plain": "as they are", "reset": "with batch norm's statistics reset", "repair": "after REPAIR"}
    parts = [f"{value:.1f} points {how[str(name)]}" for name, value in means.items()]
    return f"the test error rises by {', '.join(parts)} (mean of {rows['key'].nunique()} lines)"


def _ensembles(ensembles: pd.DataFrame) -> list[str]:
    said = []
    for row in ensembles.sort_values("disagreement", ascending=False).to_dict("records"):
        together, gain = row["ensemble_accuracy"], row["ensemble_accuracy"] - row["mean_accuracy"]
        said.append(
            f"{row['members']} {row['arm']} networks together reach {together:.1f} %, {gain:+.1f} points over one alone; "
            f"two of them disagree on {100 * row['disagreement']:.0f} % of the samples (width {row['width']:g})."
        )
    return said


def _cell(row: "pd.Series[float]") -> str:
    return f"sparsity {row['sparsity']:g}, k = {row['rewind_epoch']:.0f}"
