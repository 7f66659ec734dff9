"""Figures of permutations and masks: how well units match, what a match is made from, how alike masks are."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raylth.report.labels import readable
from raylth.report.style import MARKERS, new_figure, tidy, width_of
from raylth.report.tables import alike, own_matches

__all__ = ["mask_overlap", "match_effort", "match_quality"]

FEW = 6  # names that a single panel has beside each other
MOST_NAMES = 40  # below panels of a whole page's width


def match_quality(permutations: pd.DataFrame, title: str) -> Figure:
    """Draw the mean correlation of matched units in each symmetry group, one line per way of matching.

    `permutations` is what `load_permutations` gives. Raises ValueError when it is empty.
    """
    permutations = own_matches(permutations)
    permutations = permutations[permutations["carries_masks"].eq(True)]
    if permutations.empty:
        raise ValueError("nothing was matched, or no unit can be permuted")
    groups = list(dict.fromkeys(permutations["unit_group"]))
    figure = new_figure(width_of(1 if len(groups) <= FEW else 2), 3.6, title)
    axis = figure.subplots()
    match = ["width", "match_method", "match_epoch", "mask_finder"]
    for number, (name, rows) in enumerate(permutations.groupby(match, observed=True, dropna=False)):
        width, method, epoch, finder = name
        line = rows.groupby("unit_group")["correlation"].mean().reindex(groups)
        label = (
            f"{method} @{epoch:.0f}"
            + ("" if pd.isna(finder) else f", A by {finder}")
            + (f", width {width:g}" if permutations["width"].nunique() > 1 else "")
        )
        axis.plot(range(len(groups)), line, marker=MARKERS[number % 6], markersize=5, linewidth=1.4, label=label)
    _name_ticks(axis, groups)
    axis.set_ylabel("mean correlation")
    axis.set_ylim(top=1.0)
    tidy(axis)
    axis.legend(fontsize=8, frameon=False)
    return figure


def match_effort(permutations: pd.DataFrame, barriers: pd.DataFrame, title: str) -> Figure:
    """Draw mean correlation and barrier of pi(A) to B against the samples, and the epoch of B, that a match was made from.

    One line per width and method; points are means over replicates, bars one standard deviation, barriers of the test error
    after the most that was corrected (paper, Table 15, early matching). Raises ValueError when matches differ in neither.
    """
    matches = own_matches(permutations)
    lines = barriers[(barriers["split"] == "test") & (barriers["between"] == "pi(A) - B") & barriers["carries_masks"].notna()]
    lines = lines.reindex(columns=[*dict.fromkeys([*lines.columns, "mask_finder"])])  # older runs have none
    correction = next((name for name in ("repair", "reset", "plain") if (lines["correction"] == name).any()), None)
    lines = lines[lines["correction"] == correction].sort_values("carries_masks", ascending=False)
    lines = lines.drop_duplicates(
        ["width", "match_method", "match_samples", "match_epoch", "sparsity", "mask_finder", "replicate"]
    )
    panels = []
    for column, name in (("match_samples", "samples matched on"), ("match_epoch", "epoch of B matched at")):
        other = "match_epoch" if column == "match_samples" else "match_samples"
        usual = matches.loc[matches["carries_masks"].eq(True), other].max()  # what it is while the first one varies
        alike = [frame[frame[other].isna() | (frame[other] == usual)] for frame in (matches, lines)]
        if alike[0][column].nunique() > 1:
            panels.append((column, name, *alike))
    if not panels:
        raise ValueError("all matches are made from the same samples and epoch (analyses.match_quality asks for others)")
    figure = new_figure(width_of(len(panels)), 5.0, title)
    axes = figure.subplots(2, len(panels), squeeze=False, sharex="col")
    for (upper, lower), (column, name, found, walked) in zip(axes.T, panels, strict=True):
        _draw_effort(upper, found, column, "correlation")
        _draw_effort(lower, walked, column, "error_barrier")
        if column == "match_samples":
            lower.set_xscale("log")
        lower.set_xlabel(name)
    axes[0, 0].set_ylabel("mean correlation")
    axes[1, 0].set_ylabel(f"error barrier to B (points), {correction}")
    if len(axes[0, 0].get_legend_handles_labels()[1]) > 1:
        axes[0, 0].legend(fontsize=8, frameon=False)
    return figure


def _draw_effort(axis: Axes, frame: pd.DataFrame, column: str, value: str) -> None:
    """Draw a line per width and method: mean and deviation over replicates, each of them a mean over its groups."""
    for number, ((width, method), rows) in enumerate(frame.groupby(["width", "match_method"], observed=True)):
        means = rows.groupby([column, "replicate"])[value].mean().groupby(column).agg(["mean", "std"])
        axis.errorbar(
            means.index.astype(float), means["mean"], yerr=means["std"].fillna(0.0), marker=MARKERS[number % len(MARKERS)],
            capsize=3, label=f"{method}, width {width:g}",
        )  # fmt: skip
    tidy(axis)


def mask_overlap(masks: pd.DataFrame, title: str) -> Figure:
    """Draw what each layer keeps, and how much two masks share beyond chance, one column of panels per sparsity.

    Lines are means over replicates; dashed is what masks of these densities share by chance. Raises ValueError when no masks
    were compared.
    """
    if masks.empty:
        raise ValueError("no masks have been compared (analyses.overlap asks for it)")
    masks = alike(masks, ["width", "sparsity", "layer", "mask", "other"])
    masks = masks[(masks["layer"] != "all") & (masks["width"] == masks["width"].min())]
    layers, sparsities = list(dict.fromkeys(masks["layer"])), sorted(masks["sparsity"].unique())[-2:]
    figure = new_figure(width_of(len(sparsities) if len(layers) <= FEW else 2), 5.4, title)
    axes = figure.subplots(2, len(sparsities), squeeze=False, sharex=True, sharey="row")
    for (upper, lower), sparsity in zip(axes.T, sparsities, strict=True):
        cell = masks[masks["sparsity"] == sparsity]
        alone = cell[cell["other"].isna() & (cell["mask"] != "pi(A)")]
        for number, (name, rows) in enumerate(alone.groupby("mask")):
            density = rows.groupby("layer")["density"].mean().reindex(layers)
            upper.plot(range(len(layers)), density, marker=MARKERS[number], label=readable(str(name)))
        for number, ((one, other), rows) in enumerate(cell[cell["other"].notna()].groupby(["mask", "other"])):
            means = rows.groupby("layer")[["jaccard", "expected_jaccard"]].mean().reindex(layers)
            (drawn,) = lower.plot(
                range(len(layers)), means["jaccard"], marker=MARKERS[number], label=readable(f"{one}, {other}")
            )
            lower.plot(range(len(layers)), means["expected_jaccard"], color=drawn.get_color(), linestyle="--", linewidth=1)
        upper.set_title(f"sparsity {sparsity:g}", fontsize=10)
        _name_ticks(lower, [layer.removesuffix(".weight") for layer in layers], len(sparsities))
        tidy(upper)
        tidy(lower)
    axes[0, 0].set_ylabel("weights alive")
    axes[1, 0].set_ylabel("overlap (Jaccard)")
    axes[0, 0].legend(fontsize=8, frameon=False)
    axes[1, 0].legend(fontsize=8, frameon=False)
    return figure


def _name_ticks(axis: Axes, names: list[str], panels: int = 1) -> None:
    """Name the places 0, 1, ... of an axis, of many every second or third; `panels` are beside each other."""
    step = -(-len(names) * panels // MOST_NAMES)
    is_close = len(names) * panels > FEW
    axis.set_xticks(range(0, len(names), step), names[::step], rotation=60 if is_close else 0, fontsize=7 if is_close else 8)
