"""Figures of the loss landscape: lines between networks, the plane through three, barriers."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raylth.report.labels import readable
from raylth.report.points import LINE, line_points
from raylth.report.sentences import DENSE
from raylth.report.style import (
    CORRECTION_STYLES,
    MARKERS,
    PER_ROW,
    SINGLE,
    interval_bars,
    new_figure,
    new_panels,
    spread,
    tidy,
    width_of,
)
from raylth.report.tables import barrier_means, imp_barrier_table, matched_lines

__all__ = ["barrier_vs_width", "imp_barriers", "line_name", "line_plot", "plane_plot"]

MOST_LINES = 12  # panels


def line_plot(lines: pd.DataFrame, title: str) -> Figure:
    """Draw the test error along every kind of line, one panel per pair of ends and width (paper, Figure 3, right).

    Lines are means over replicates, bands their range; one colour per correction. Drawn are the line from dense A to IMP's
    last round and, of several matches by one method, the latest; at most 12. Raises ValueError when nothing was walked.
    """
    test = lines[lines["split"] == "test"]
    if test.empty:
        raise ValueError("no line has been measured (connect and analyses.lines ask for them)")
    is_match = test["carries_masks"].notna()
    latest = test["match_epoch"] == test.loc[test["carries_masks"].eq(True), "match_epoch"].max()
    last_round = test["imp_round"].isna() | (test["imp_round"] == test["imp_round"].max())
    test = test[last_round & (~is_match | (test["carries_masks"].eq(True) & latest))]
    panels = [group for _, group in line_points(test).groupby(LINE, dropna=False)]
    if len(panels) > MOST_LINES:
        figure_note = f"{title} (the first {MOST_LINES} of {len(panels)} kinds; the tables have all)"
        panels, title = panels[:MOST_LINES], figure_note
    columns = min(len(panels), PER_ROW)
    figure, axes = new_panels(len(panels), columns, title)
    for axis, panel in zip(axes, panels, strict=True):
        for correction, (colour, marker, dash) in CORRECTION_STYLES.items():
            points = panel[panel["correction"] == correction]
            if len(points):
                along = points["alpha"]
                axis.plot(along, points["mean"], color=colour, marker=marker, linestyle=dash, markersize=4, label=correction)
                axis.fill_between(along, points["low"], points["high"], color=colour, alpha=0.15, linewidth=0)
        axis.set_title(line_name(panel.iloc[0], test), fontsize=9)
        axis.set_xlabel("from the first (0) to the second (1)", fontsize=8)
        axis.tick_params(labelbottom=True)
        tidy(axis)
    for axis in axes[::columns]:
        axis.set_ylabel("test error (%)")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def line_name(first: "pd.Series[Any]", lines: pd.DataFrame) -> str:
    """Return what a kind of line is called, of which `first` is a row, among all these lines."""
    parts = [readable(str(first["between"]))]
    if pd.notna(first["imp_round"]):
        parts.append(f"round {first['imp_round']:.0f}")
    if lines["width"].nunique() > 1:
        parts.append(f"width {first['width']:g}")
    if pd.notna(first["rewind_epoch"]) and set(str(first["between"]).split(" - ")) - DENSE:
        parts.append(f"S = {first['sparsity']:g}, k = {first['rewind_epoch']}")
    if lines["match_method"].nunique() > 1 and pd.notna(first["match_method"]):
        parts.append(str(first["match_method"]))
    return ", ".join(parts)


def plane_plot(planes: pd.DataFrame, title: str) -> Figure:
    """Draw the test error over each plane, of the first replicate (paper, Figure 4b); the three networks are marked.

    Coordinates are distances of weights. Raises ValueError when no plane was measured.
    """
    test = planes[(planes["split"] == "test") & (planes["replicate"] == planes["replicate"].min())]
    if test.empty:
        raise ValueError("no plane has been measured (analyses.planes asks for them)")
    panels = spread([group for _, group in test.groupby("key", sort=False)])
    rows, columns = -(-len(panels) // 2), min(len(panels), 2)
    figure = new_figure(width_of(columns), 0.4 + 3.2 * rows, title)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for spare in axes[len(panels) :]:
        spare.remove()
    for axis, panel in zip(axes, panels, strict=False):
        grid = panel[panel["corner"].isna()].pivot_table(index="y", columns="x", values="error")
        levels = MaxNLocator(12).tick_values(np.nanmin(grid.to_numpy()), np.nanmax(grid.to_numpy()) + 1e-6)
        drawn = axis.contourf(grid.columns, grid.index, grid.to_numpy(), levels=levels, cmap="viridis")
        figure.colorbar(drawn, ax=axis, label="test error (%)")
        _mark(axis, panel[panel["corner"].notna()])
        width = f", width {panel['width'].iloc[0]:g}" if test["width"].nunique() > 1 else ""
        axis.set_title(f"sparsity {panel['sparsity'].iloc[0]:g}, k = {panel['rewind_epoch'].iloc[0]}{width}", fontsize=9)
        axis.set_aspect("equal")
    return figure


def _mark(axis: Axes, corners: pd.DataFrame) -> None:
    for corner in corners.itertuples():
        axis.plot(corner.x, corner.y, marker="o", color="white", markeredgecolor="black", markersize=7)
        label = f"{corner.corner} ({corner.error:.0f} %)"
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
        low, high = axis.get_xlim()
        place = (corner.x - low) / (high - low)
        align = "left" if place < 0.25 else "right" if place > 0.75 else "center"
        axis.annotate(label, (corner.x, corner.y), xytext=(0, 8), textcoords="offset points", fontsize=8, ha=align, bbox=box)


def imp_barriers(barriers: pd.DataFrame, title: str) -> Figure:
    """Draw the test error barrier from dense A to every round of IMP, a line per correction (paper, Figure 4a).

    Points are means over replicates, bars 95 % confidence intervals (`barrier_table`).
    Raises ValueError when there are no such lines.
    """
    cells = imp_barrier_table(barriers)
    cells = cells[cells["split"] == "test"]
    if cells.empty:
        raise ValueError("no line from dense A to a round of IMP has been measured (analyses.imp_line asks for them)")
    figure = new_figure(SINGLE, 3.6, title)
    axis = figure.subplots()
    for number, ((width, correction), line) in enumerate(cells.groupby(["width", "correction"], observed=True)):
        line = line.sort_values("sparsity")
        label = str(correction) + (f", width {width:g}" if cells["width"].nunique() > 1 else "")
        axis.errorbar(
            line["sparsity"].astype(float),
            line["error_barrier"],
            yerr=interval_bars(line, "error_barrier"),
            marker=MARKERS[number % 6],
            capsize=3,
            label=label,
        )
    axis.set_xlabel("sparsity after the round")
    axis.set_ylabel("error barrier (points)")
    axis.set_ylim(bottom=0)
    tidy(axis)
    axis.legend(fontsize=8, frameon=False)
    return figure


def barrier_vs_width(barriers: pd.DataFrame, title: str) -> Figure:
    """Draw the test error barrier between pi(A) and B against the width of the network (paper, Figure 3, left).

    Points are means over replicates, bars 95 % confidence intervals (`barrier_table`); of several epochs matched at, the
    last. Raises ValueError for fewer than two widths.
    """
    test = matched_lines(barriers)
    test = test[test["split"] == "test"]
    if test["width"].nunique() < 2:
        raise ValueError("there are no lines from pi(A) to B at two widths (model.widths and connect ask for them)")
    latest = test["match_epoch"] == test["match_epoch"].max()
    figure = new_figure(SINGLE, 3.6, title)
    axis = figure.subplots()
    methods = list(dict.fromkeys(test["match_method"]))
    for (method, correction), rows in test[latest].groupby(["match_method", "correction"], sort=False):
        colour, marker, dash = CORRECTION_STYLES[correction]
        line = barrier_means(rows.sort_values("width"), ["width"])
        label = correction if len(methods) == 1 else f"{method}, {correction}"
        axis.errorbar(
            line["width"], line["error_barrier"], yerr=interval_bars(line, "error_barrier"), color=colour, linestyle=dash,
            capsize=3, label=label, marker=marker if len(methods) == 1 else MARKERS[methods.index(method) % len(MARKERS)],
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(test["width"].unique()), [f"{width:g}" for width in sorted(test["width"].unique())])
    axis.set_xlabel("width")
    axis.set_ylabel("error barrier (points)")
    axis.set_ylim(bottom=0)
    tidy(axis)
    axis.legend(fontsize=8, frameon=False)
    return figure
