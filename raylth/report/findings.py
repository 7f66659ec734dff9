"""What a sweep shows, as sentences with numbers."""

import pandas as pd

from raylth.report.statistics import paired_differences
from raylth.report.tables import CELL, accuracy_table, dense_networks

__all__ = ["findings"]


def findings(results: pd.DataFrame, barriers: pd.DataFrame, ensembles: pd.DataFrame | None = None) -> list[str]:
    """Return one sentence per thing that the finished networks show; none when nothing can be said yet."""
    cells = accuracy_table(results)
    said = [*_permuted_against_naive(results), *_recovered(cells)]
    dense = dense_networks(results)["test_accuracy"]
    if len(dense):
        said.append(f"The dense networks reach {dense.mean():.1f} % (n = {len(dense)}).")
    said += _barriers(barriers)
    return said if ensembles is None else said + _ensembles(ensembles)


def _permuted_against_naive(results: pd.DataFrame) -> list[str]:
    said = []
    for label, pairs in paired_differences(results).groupby("label", observed=True):
        ahead = (pairs["difference"] > 0).sum()
        sure = (pairs["low"] > 0).sum()
        best = pairs.loc[pairs["difference"].idxmax()]
        text = f"{label} beats naive in {ahead} of {len(pairs)} cells, on average by {pairs['difference'].mean():.1f} points"
        text += f", most at {_cell(best)}: {best['difference']:+.1f} points."
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
    test = barriers[(barriers["split"] == "test") & (barriers["correction"] == "repair")]
    for method, rows in test.groupby("match_method", observed=True):
        barrier = rows["error_barrier"]
        said.append(
            f"Between pi(A) and B, matched by {method}, the test error rises by {barrier.mean():.1f} points after REPAIR "
            f"(mean of {len(barrier)} lines)."
        )
    return said


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
    return f"sparsity {row['sparsity']:.2f}, k = {row['rewind_epoch']:.0f}"
