"""Figures of accuracy: against the rewind point, against sparsity, and what the permutation gains."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raylth.report.labels import short_names
from raylth.report.statistics import CONFIDENCE, contrast
from raylth.report.style import (
    ARM_COLOURS,
    PER_ROW,
    SINGLE,
    WIDE,
    legend_below,
    looks_of,
    new_figure,
    new_panels,
    spread,
    tidy,
)
from raylth.report.tables import accuracy_table, dense_networks, finished_arms, lost_arms

__all__ = ["accuracy_vs_rewind", "accuracy_vs_sparsity", "difference_plot"]

MOST_CELLS = 40  # below each other
LONG_NAME = 24  # characters of a cell's name that leave a single panel too little room


def accuracy_vs_rewind(results: pd.DataFrame, title: str) -> Figure:
    """Draw test accuracy against the rewind point, one panel per sparsity and finder and, in rows of their own, width.

    Points are means over replicates, bars one standard deviation; the dashed line is the dense networks' mean (paper,
    Figures 5, 6 and 8). Of many sparsities some are drawn. Raises ValueError when no sparse network has finished, and for
    runs that `accuracy_table` refuses.
    """
    cells = _with_finder(accuracy_table(results), results)
    dense = dense_networks(results).groupby("width")["test_accuracy"].mean()
    return _accuracy_panels(cells, title, "sparsity", "rewind_epoch", dense)


def accuracy_vs_sparsity(results: pd.DataFrame, title: str) -> Figure:
    """Draw test accuracy against the mask's sparsity, one panel per rewind point and finder and, in rows of their own, width.

    Points are means over replicates, bars one standard deviation (paper, Figures 9 and 10). Of many rewind points some are
    drawn. Raises ValueError as `accuracy_vs_rewind` does.
    """
    return _accuracy_panels(_with_finder(accuracy_table(results), results), title, "rewind_epoch", "sparsity")


def _with_finder(cells: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Return an accuracy table with the mask's `finder`, "" where there is one only, and labels that do not name it."""
    arms = finished_arms(results).reindex(columns=["arm", "label", "mask_finder"]).drop_duplicates()
    if arms["mask_finder"].nunique() < 2:
        return cells.assign(finder="")
    cells = cells.merge(arms, on=["arm", "label"], how="left")
    lost = lost_arms(results).reindex(columns=["mask_finder"])["mask_finder"]
    names = short_names([*arms["mask_finder"].dropna(), *lost.dropna()])  # of all that have labels
    finders = cells["mask_finder"].map(names).fillna("")
    labels = [label.replace(f" {finder}", "", 1) for label, finder in zip(cells["label"], finders, strict=True)]
    return cells.assign(finder=finders, label=labels)


def _accuracy_panels(
    cells: pd.DataFrame, title: str, by: str, against: str, dense: "pd.Series[float] | None" = None
) -> Figure:
    """Draw accuracy against one column, a panel per finder and value of another one; of one width in rows of three."""
    if cells.empty:
        raise ValueError("no sparse network has finished")
    widths, values = sorted(cells["width"].unique()), spread(sorted(cells[by].unique()))
    beside = [(finder, value) for finder in dict.fromkeys(cells["finder"]) for value in values]
    columns = min(len(beside), PER_ROW)
    gaps = [None] * (-len(beside) % columns if len(widths) > 1 else 0)  # every width begins a row
    places = [place and (width, *place) for width in widths for place in [*beside, *gaps]]
    figure, axes = new_panels(len(places), columns, title, sharey="row" if len(widths) > 1 else True)
    looks = looks_of(zip(cells["arm"], cells["label"], strict=True))
    for number, (axis, place) in enumerate(zip(axes, places, strict=True)):
        if place is None:
            axis.remove()
            continue
        width, finder, value = place
        if dense is not None:
            axis.axhline(dense.get(width, float("nan")), color="black", linestyle="--", linewidth=1, label="dense")
        shown = (cells["width"] == width) & (cells["finder"] == finder) & (cells[by] == value)
        _draw_arms(axis, cells[shown], against, looks)
        name = f"sparsity {value:g}" if by == "sparsity" else f"k = {value}"
        name = f"{finder}, {name}" if finder else name
        axis.set_title(name + (f", width {width:g}" if len(widths) > 1 else ""), fontsize=10)
        if against == "rewind_epoch":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if number % columns == 0:
            axis.set_ylabel("test accuracy (%)")
        tidy(axis)
    for number, axis in enumerate(axes):
        if number + columns >= len(axes) or places[number + columns] is None:
            axis.set_xlabel("rewind point k (epochs)" if against == "rewind_epoch" else "sparsity of the mask")
            axis.tick_params(labelbottom=True)
    axes = [axis for axis, place in zip(axes, places, strict=True) if place is not None]
    caption = f"points: mean over replicates ({_range(cells['n'])}); bars: one standard deviation"
    legend_below(figure, axes, caption, [label for _, label in looks])
    return figure


def _draw_arms(axis: Axes, cells: pd.DataFrame, against: str, looks: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Draw a line per arm: its mean and standard deviation against a column of the accuracy table."""
    groups = dict(list(cells.groupby(["arm", "label"], observed=True)))
    for arm in (arm for arm in looks if arm in groups):
        line = groups[arm].sort_values(against)
        axis.errorbar(
            line[against].astype(float),
            line["mean"],
            yerr=line["std"].fillna(0.0),
            label=arm[1],
            **looks[arm],
            linewidth=1.6,
            markersize=5,
            capsize=3,
        )


def _range(counts: "pd.Series[int]") -> str:
    fewest, most = counts.min(), counts.max()
    return f"n = {most}" if fewest == most else f"n = {fewest} to {most}"


def difference_plot(results: pd.DataFrame, title: str) -> Figure:
    """Draw what the permutation gains over the naive mask, cell by cell, with its confidence interval.

    Of more than 40 cells those are drawn that gain least and most, 20 each. Raises ValueError when no cell has both arms.
    """
    pairs = contrast(results)
    if pairs.empty:
        raise ValueError("no cell has both the permuted and the naive arm")
    if left_out := max(0, len(pairs) - MOST_CELLS):
        ranked = pairs.sort_values("difference")
        pairs = pd.concat([ranked.head(MOST_CELLS // 2), ranked.tail(MOST_CELLS // 2)])
    pairs = pairs.sort_values(["width", "sparsity", "rewind_epoch", "label"], ascending=False)
    many_widths, many_labels = pairs["width"].nunique() > 1, pairs["label"].nunique() > 1
    names = [
        (f"width {row.width:g}, " if many_widths else "")
        + f"S = {row.sparsity:g}, k = {row.rewind_epoch}"
        + (f", {row.label}" if many_labels else "")
        for row in pairs.itertuples()
    ]
    longest = max(map(len, names))
    figure = new_figure(SINGLE if longest < LONG_NAME else WIDE, 1.6 + 0.3 * len(pairs), title)
    axis = figure.subplots()
    places = range(len(pairs))
    axis.errorbar(
        pairs["difference"],
        places,
        xerr=(pairs["high"] - pairs["difference"]).fillna(0.0),
        fmt="s",
        color=ARM_COLOURS["permuted"],
        capsize=3,
        markersize=5,
    )
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(list(places), names, fontsize=8)
    how = "paired by replicate" if (pairs["design"] == "paired").all() else "unpaired (Welch)"
    caption = f"permuted - naive, percentage points\nbars: {CONFIDENCE:.0%} confidence interval, {how}"
    left = (
        f"\nthe {MOST_CELLS // 2} cells that gain least and most;\n{left_out} in between are in the table" if left_out else ""
    )
    axis.set_xlabel(caption + left, fontsize=8)
    tidy(axis)
    return figure
