"""The figure of learning curves: what training reaches epoch by epoch."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raylth.report.points import MEASURES, curve_points
from raylth.report.style import legend_below, looks_of, new_panels, tidy
from raylth.report.tables import dense_networks, finished_arms

__all__ = ["learning_curves"]

MOST_SPARSITIES = 2


def learning_curves(results: pd.DataFrame, curves: pd.DataFrame, title: str) -> Figure:
    """Draw training loss, and test accuracy where it was measured on the way, against the epoch, a column per sparsity.

    Lines are means over replicates, bands one standard deviation: of the dense networks and of the arms at the latest
    rewind point of the largest width; of many sparsities the highest. Raises ValueError when no curve was recorded.
    """
    trained = finished_arms(results)
    trained = trained if len(trained) else dense_networks(results)
    if trained.empty or curves.empty:
        raise ValueError("no finished network has a recorded curve")
    points = curve_points(results, curves)
    points = points[points["width"] == trained["width"].max()]
    is_dense = points["label"] == "dense"
    arms, dense = points[~is_dense], points[is_dense]
    arms = arms[arms["rewind_epoch"] == arms["rewind_epoch"].max()]
    measures = [name for name in MEASURES if name in {*arms["measure"], *dense["measure"]}]
    if not measures:
        raise ValueError("no network was measured at more than one epoch")
    sparsities = sorted(arms["sparsity"].unique())[-MOST_SPARSITIES:] or [None]
    figure, axes = new_panels(len(measures) * len(sparsities), len(sparsities), title, sharey="row")
    places = [(name, sparsity) for name in measures for sparsity in sparsities]
    shown = arms[arms["sparsity"].isin(sparsities)]
    looks = looks_of(zip(shown["arm"], shown["label"], strict=True))
    for axis, (name, sparsity) in zip(axes, places, strict=True):
        mine = arms[(arms["sparsity"] == sparsity) & (arms["measure"] == name)]
        _draw(axis, dense[dense["measure"] == name], mine, looks)
        if name == measures[0]:
            axis.set_title("dense" if sparsity is None else _panel_title(sparsity, arms, results), fontsize=10)
        if sparsity == sparsities[0]:
            axis.set_ylabel(MEASURES[name])
    for axis in axes[-len(sparsities) :]:
        axis.set_xlabel("epoch of the network's own training")
    caption = "lines: mean over replicates; bands: one standard deviation"
    legend_below(figure, axes, caption, [label for _, label in looks])
    return figure


def _panel_title(sparsity: float, arms: pd.DataFrame, results: pd.DataFrame) -> str:
    width = f", width {arms['width'].iloc[0]:g}" if results["width"].nunique() > 1 else ""
    return f"sparsity {sparsity:g}, k = {arms['rewind_epoch'].iloc[0]}{width}"


def _draw(axis: Axes, dense: pd.DataFrame, arms: pd.DataFrame, looks: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Draw the dense networks, and a line for each arm."""
    _line(axis, dense, "dense", {"color": "black"})
    groups = dict(list(arms.groupby(["arm", "label"], observed=True)))
    for arm, look in looks.items():
        if arm in groups:
            _line(axis, groups[arm], arm[1], look)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axis)


def _line(axis: Axes, points: pd.DataFrame, label: str, look: dict[str, Any]) -> None:
    if points.empty:
        return
    epochs, mean = points["epoch"].to_numpy(float), points["mean"].to_numpy(float)
    band = points["std"].fillna(0.0).to_numpy(float)
    axis.plot(epochs, mean, label=label, linewidth=1.5, markersize=4, markevery=max(1, len(mean) // 6), **look)
    axis.fill_between(epochs, mean - band, mean + band, color=look["color"], alpha=0.15, linewidth=0)
