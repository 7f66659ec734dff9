"""Figures, with one colour and one marker per arm everywhere: told apart in grey print and by colour-blind eyes."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raylth.report.tables import ARM_ORDER, accuracy_table, dense_networks

__all__ = ["ARM_COLOURS", "accuracy_vs_rewind"]

ARM_COLOURS = {  # Okabe and Ito (2008)
    "lth": "#0072B2",
    "permuted": "#D55E00",
    "naive": "#009E73",
    "random_permutation": "#CC79A7",
    "random": "#7F7F7F",
}
ARM_MARKERS = {"lth": "o", "permuted": "s", "naive": "^", "random_permutation": "v", "random": "x"}


def accuracy_vs_rewind(results: pd.DataFrame, title: str) -> Figure:
    """Draw test accuracy against the rewind point, one panel per sparsity (columns) and width (rows).

    Points are means over replicates, bars one standard deviation; the dashed line is the dense networks' mean (paper,
    Figures 5, 6 and 8). Raises ValueError when no sparse network has finished, and for runs that `accuracy_table` refuses.
    """
    cells = accuracy_table(results)
    if cells.empty:
        raise ValueError("no sparse network has finished, so there is nothing to draw")
    widths, sparsities = sorted(cells["width"].unique()), sorted(cells["sparsity"].unique())
    figure = Figure(figsize=(1.2 + 3.0 * len(sparsities), 0.9 + 2.9 * len(widths)), dpi=150, layout="constrained")
    axes = figure.subplots(len(widths), len(sparsities), squeeze=False, sharex=True, sharey="row")
    dense_accuracy = dense_networks(results).groupby("width")["test_accuracy"].mean()
    for row, width in enumerate(widths):
        for column, sparsity in enumerate(sparsities):
            axis = axes[row, column]
            panel = cells[(cells["width"] == width) & (cells["sparsity"] == sparsity)]
            axis.axhline(dense_accuracy.get(width, float("nan")), color="black", linestyle="--", linewidth=1, label="dense")
            ordered = sorted(panel.groupby(["arm", "label"], observed=True), key=lambda group: _rank(group[0]))
            for (arm, label), line in ordered:
                line = line.sort_values("rewind_epoch")
                axis.errorbar(
                    line["rewind_epoch"].astype(float),
                    line["mean"],
                    yerr=line["std"].fillna(0.0),
                    label=label,
                    color=ARM_COLOURS[arm],
                    marker=ARM_MARKERS[arm],
                    linewidth=1.6,
                    markersize=5,
                    capsize=3,
                )
            axis.set_title(f"sparsity {sparsity:.0%}" + (f", width {width:g}" if len(widths) > 1 else ""), fontsize=10)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        axes[row, 0].set_ylabel("test accuracy (%)")
    for axis in axes[-1]:
        axis.set_xlabel("rewind point k (epochs)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    caption = f"points: mean over replicates ({_range(cells['n'])}); bars: one standard deviation"
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False, title=caption, title_fontsize=8
    )
    figure.suptitle(title, fontsize=11)
    return figure


def _range(counts: "pd.Series[int]") -> str:
    fewest, most = counts.min(), counts.max()
    return f"n = {most}" if fewest == most else f"n = {fewest} to {most}"


def _rank(group: tuple[str, str]) -> tuple[int, str]:
    arm, label = group
    return ARM_ORDER.index(arm), label
