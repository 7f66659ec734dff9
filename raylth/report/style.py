"""What all figures share: one colour and one marker per arm, told apart in grey print and by colour-blind eyes."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "ARM_COLOURS",
    "ARM_MARKERS",
    "CORRECTION_STYLES",
    "MARKERS",
    "interval_bars",
    "new_figure",
    "spread",
    "tidy",
]

ARM_COLOURS = {  # Okabe and Ito (2008)
    "lth": "#0072B2",
    "permuted": "#D55E00",
    "naive": "#009E73",
    "random_permutation": "#CC79A7",
    "random": "#7F7F7F",
}
ARM_MARKERS = {"lth": "o", "permuted": "s", "naive": "^", "random_permutation": "v", "random": "x"}
CORRECTION_STYLES = {"plain": ("black", "o", "-"), "reset": ("#56B4E9", "s", "--"), "repair": ("#E69F00", "^", "-.")}
MARKERS = "osv^Dx"
MOST_PANELS = 6  # beside each other


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure, in inches, that lays itself out."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


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
