"""What all figures share: one colour and one marker per arm, distinguishable in grey print and by colour-blind readers."""

import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from raylth.arms import BUILT_IN, arm_of, rank

__all__ = [
    "ARM_COLOURS",
    "CORRECTION_STYLES",
    "DASHES",
    "MARKERS",
    "MOST_PANELS",
    "PER_ROW",
    "SINGLE",
    "WIDE",
    "interval_bars",
    "legend_below",
    "looks_of",
    "new_figure",
    "new_panels",
    "spread",
    "tidy",
    "width_of",
]

ARM_COLOURS = {name: arm.colour for name, arm in BUILT_IN.items()}
CORRECTION_STYLES = {"plain": ("black", "o", "-"), "reset": ("#2E8BC0", "s", "--"), "repair": ("#B97A00", "^", "-.")}
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
LEGEND = 1.0  # inches: the height of a legend that figures have room for
MARKERS = "osv^Dx"
MOST_PANELS = 6  # of many, so many are drawn
PER_ROW = 2  # panels beside each other: as many as stay readable on a page
SINGLE = 4.4  # inches: the width of a single panel, which a telephone shows whole
WIDE = 7.2  # inches: the width of every other figure


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure, in inches, that lays itself out."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    wrapped = textwrap.fill(title, int(11 * width), break_long_words=False)
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=11)  # at the left, where a narrow screen begins
    return figure


def width_of(columns: int) -> float:
    """Return the width of a figure with so many panels beside each other, in inches: one of two for all figures."""
    return SINGLE if columns < 2 else WIDE


def new_panels(count: int, columns: int, title: str, *, height: float = 2.9, sharey: Any = True) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row; the lowest of each column has the labels of the horizontal axis.

    `height` is a panel's, in inches.
    """
    rows = -(-count // columns)
    figure = new_figure(width_of(columns), 0.9 + height * rows, title)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=sharey).flatten())
    for spare in axes[count:]:
        spare.remove()
    for axis in axes[max(0, count - columns) : count]:
        axis.tick_params(labelbottom=True)
    return figure, axes[:count]


def looks_of(arms: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return how each (arm, label) is drawn in all panels of a figure, in the order of legends.

    Several ways of matching share their arm's colour and marker, and differ in their dashes.
    """
    looks: dict[tuple[str, str], dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for name, label in sorted(set(arms), key=lambda each: (rank(each[0]), each)):
        arm, dash = arm_of(name), DASHES[seen[name] % len(DASHES)]
        seen[name] += 1
        looks[name, label] = {"color": arm.colour, "marker": arm.marker, "linestyle": dash}
    return looks


def legend_below(figure: Figure, axes: Iterable[Axes], caption: str, order: Iterable[str] = ()) -> None:
    """Write the names of all panels' lines below them, in as many columns as a narrow screen shows, and a caption.

    Names in `order` come last, in that order.
    """
    found = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    last = [name for name in order if name in found]
    names = [*(name for name in found if name not in last), *last]
    handles = [found[name] for name in names]
    renderer, room = FigureCanvasAgg(figure).get_renderer(), min(figure.bbox.width, SINGLE * figure.dpi)
    for columns in range(len(names), 0, -1):
        legend = figure.legend(
            handles,
            names,
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            fontsize=9,
            title=caption,
            title_fontsize=8,
            alignment="left",
        )
        if columns == 1 or legend.get_window_extent(renderer).width <= room:
            break
        legend.remove()
    if names:
        height = legend.get_window_extent(renderer).height / figure.dpi
        figure.set_figheight(figure.get_figheight() + max(0.0, height - LEGEND))  # the panels keep their room


def tidy(axis: Axes) -> None:
    """Draw a light grid, and no frame where there is no axis."""
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def interval_bars(rows: pd.DataFrame, column: str) -> Any:
    """Return the lengths of error bars, (2, rows), from a value's columns `_low` and `_high`; 0 without an interval."""
    ends = [rows[column] - rows[f"{column}_low"], rows[f"{column}_high"] - rows[column]]
    return np.nan_to_num(np.array([end.to_numpy(float) for end in ends]))


def spread(values: list[Any]) -> list[Any]:
    """Choose as many as can be drawn beside each other, first and last among them; the tables have all."""
    if len(values) <= MOST_PANELS:
        return values
    return [values[round(i * (len(values) - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]
