"""Figures of accuracy: against the rewind point, against sparsity, and what the permutation gains."""

from collections import Counter

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raylth.report.statistics import CONFIDENCE, contrast
from raylth.report.style import ARM_COLOURS, ARM_MARKERS, new_figure, spread, tidy
from raylth.report.tables import ARM_ORDER, accuracy_table, dense_networks

__all__ = ["accuracy_vs_rewind", "accuracy_vs_sparsity", "difference_plot"]

DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MOST_CELLS = 40  # below each other


def accuracy_vs_rewind(results: pd.DataFrame, title: str) -> Figure:
    """Draw test accuracy against the rewind point, one panel per sparsity (columns) and width (rows).

    Points are means over replicates, bars one standard deviation; the dashed line is the dense networks' mean (paper,
    Figures 5, 6 and 8). Of many sparsities some are drawn. Raises ValueError when no sparse network has finished, and for
    runs that `accuracy_table` refuses.
    """
    cells = accuracy_table(results)
    if cells.empty:
        raise ValueError("no sparse network has finished, so there is nothing to draw")
    widths, sparsities = sorted(cells["width"].unique()), spread(sorted(cells["sparsity"].unique()))
    figure = new_figure(1.2 + 3.0 * len(sparsities), 0.9 + 2.9 * len(widths), title)
    axes = figure.subplots(len(widths), len(sparsities), squeeze=False, sharex=True, sharey="row")
    dense_accuracy = dense_networks(results).groupby("width")["test_accuracy"].mean()
    for row, width in enumerate(widths):
        for column, sparsity in enumerate(sparsities):
            axis = axes[row, column]
            panel = cells[(cells["width"] == width) & (cells["sparsity"] == sparsity)]
            axis.axhline(dense_accuracy.get(width, float("nan")), color="black", linestyle="--", linewidth=1, label="dense")
            _draw_arms(axis, panel, "rewind_epoch")
            axis.set_title(f"sparsity {sparsity:g}" + (f", width {width:g}" if len(widths) > 1 else ""), fontsize=10)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            tidy(axis)
        axes[row, 0].set_ylabel("test accuracy (%)")
    for axis in axes[-1]:
        axis.set_xlabel("rewind point k (epochs)")
    _legend(figure, axes[0, 0], cells["n"])
    return figure


def _draw_arms(axis: Axes, cells: pd.DataFrame, against: str) -> None:
    """Draw a line per arm: its mean and standard deviation against a column of the accuracy table."""
    seen: Counter[str] = Counter()
    for (arm, label), line in sorted(cells.groupby(["arm", "label"], observed=True), key=lambda group: _rank(group[0])):
        dash, seen[arm] = DASHES[seen[arm] % len(DASHES)], seen[arm] + 1  # several ways of matching share their arm's colour
        line = line.sort_values(against)
        axis.errorbar(
            line[against].astype(float),
            line["mean"],
            yerr=line["std"].fillna(0.0),
            label=label,
            color=ARM_COLOURS[arm],
            marker=ARM_MARKERS[arm],
            linestyle=dash,
            linewidth=1.6,
            markersize=5,
            capsize=3,
        )


def _legend(figure: Figure, axis: Axes, counts: "pd.Series[int]") -> None:
    """Write the lines' names, in as many columns as there is room for, and what points and bars are."""
    handles, names = axis.get_legend_handles_labels()
    caption = f"points: mean over replicates ({_range(counts)}); bars: one standard deviation"
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(len(names), 0, -1):
        legend = figure.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False, title=caption, title_fontsize=8
        )
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            break
        legend.remove()


def _range(counts: "pd.Series[int]") -> str:
    fewest, most = counts.min(), counts.max()
    return f"n = {most}" if fewest == most else f"n = {fewest} to {most}"


def _rank(group: tuple[str, str]) -> tuple[int, str]:
    arm, label = group
    return ARM_ORDER.index(arm), label


def accuracy_vs_sparsity(results: pd.DataFrame, title: str) -> Figure:
    """Draw test accuracy against the mask's sparsity, one panel per rewind point (columns) and width (rows).

    Points are means over replicates, bars one standard deviation (paper, Figures 9 and 10). Of many rewind points some are
    drawn. Raises ValueError as `accuracy_vs_rewind` does.
    """
    cells = accuracy_table(results)
    if cells.empty:
        raise ValueError("no sparse network has finished, so there is nothing to draw")
    widths, rewinds = sorted(cells["width"].unique()), spread(sorted(cells["rewind_epoch"].unique()))
    figure = new_figure(1.2 + 3.0 * len(rewinds), 0.9 + 2.9 * len(widths), title)
    axes = figure.subplots(len(widths), len(rewinds), squeeze=False, sharex=True, sharey="row")
    for row, width in enumerate(widths):
        for column, rewind in enumerate(rewinds):
            axis = axes[row, column]
            panel = cells[(cells["width"] == width) & (cells["rewind_epoch"] == rewind)]
            _draw_arms(axis, panel, "sparsity")
            axis.set_title(f"k = {rewind}" + (f", width {width:g}" if len(widths) > 1 else ""), fontsize=10)
            tidy(axis)
        axes[row, 0].set_ylabel("test accuracy (%)")
    for axis in axes[-1]:
        axis.set_xlabel("sparsity of the mask")
    _legend(figure, axes[0, 0], cells["n"])
    return figure


def difference_plot(results: pd.DataFrame, title: str) -> Figure:
    """Draw what the permutation gains over the naive mask, cell by cell, with its confidence interval.

    Of more than 40 cells those are drawn that gain least and most, 20 each. Raises ValueError when no cell has both arms.
    """
    pairs = contrast(results)
    if pairs.empty:
        raise ValueError("no cell has both the permuted and the naive arm, so there is nothing to draw")
    if left_out := max(0, len(pairs) - MOST_CELLS):
        ranked = pairs.sort_values("difference")
        pairs = pd.concat([ranked.head(MOST_CELLS // 2), ranked.tail(MOST_CELLS // 2)])
    pairs = pairs.sort_values(["width", "sparsity", "rewind_epoch", "label"], ascending=False)
    figure = new_figure(6.5, 1.4 + 0.3 * len(pairs), title)
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
    many_widths, many_labels = pairs["width"].nunique() > 1, pairs["label"].nunique() > 1
    names = [
        (f"width {row.width:g}, " if many_widths else "")
        + f"S = {row.sparsity:g}, k = {row.rewind_epoch}"
        + (f", {row.label}" if many_labels else "")
        for row in pairs.itertuples()
    ]
    axis.set_yticks(list(places), names, fontsize=8)
    how = "paired by replicate" if (pairs["design"] == "paired").all() else "unpaired (Welch)"
    caption = f"permuted - naive, percentage points; bars: {CONFIDENCE:.0%} confidence interval, {how}"
    left = (
        f"\nthe {MOST_CELLS // 2} cells that gain least and most; {left_out} in between are in the table" if left_out else ""
    )
    axis.set_xlabel(caption + left, fontsize=8)
    tidy(axis)
    return figure
