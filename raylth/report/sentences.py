"""What a sweep shows, as sentences with numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from raylth.arms import split_move
from raylth.report.lost import UPSTREAM, count_lost, lost_note
from raylth.report.statistics import contrast_cells, mean_effects, recovered
from raylth.report.tables import barrier_means, dense_networks, ensemble_table, lost_arms, matched_lines, with_interval_text

__all__ = ["findings", "symmetry_findings"]

DENSE = {"A", "B", "pi(A)", "pi^-1(B)"}  # ends that are of no cell
LEVEL = 0.05
HOW = {"plain": "with plain interpolation", "reset": "with batch norm's statistics reset", "repair": "after REPAIR"}


def findings(
    results: pd.DataFrame,
    barriers: pd.DataFrame,
    ensembles: pd.DataFrame | None = None,
    masks: pd.DataFrame | None = None,
) -> list[str]:
    """Return one paragraph per thing that the finished networks show; none while there is nothing to show.

    The planned contrasts come first (`mean_effects`); each paragraph names the networks that it lacks, which diverged or
    failed.
    """
    sentences = [*_contrasts(results), *_recovered(results)]
    dense = dense_networks(results)
    for width, rows in dense.groupby("width"):
        where = f" of width {width:g}" if dense["width"].nunique() > 1 else ""
        text = f"The dense networks{where} reach {rows['test_accuracy'].mean():.1f} % (n = {len(rows)})"
        sentences.append(_noted(text, results, "dense"))
    sentences += _barriers(barriers, results)
    sentences += [] if ensembles is None else _ensembles(ensembles, results)
    return sentences + ([] if masks is None else _masks(masks, results))


def symmetry_findings(manifest: Mapping[str, Any] | None, permutations: pd.DataFrame) -> list[str]:
    """Say where a run's networks were matched and none has a unit that can be permuted."""
    matched = (manifest or {}).get("stages", {}).get("match", {}).get("done", 0)
    if not matched or len(permutations):
        return []
    return [
        "The network has no permutation symmetry: pi leaves every unit where it is, so that arms under a permutation train "
        "what naive trains, and their difference is 0 by construction."
    ]


def _noted(text: str, results: pd.DataFrame, *stages: str, arms: Iterable[str] = ()) -> str:
    """End a sentence, with the networks of these stages, and of these arms, that it lacks."""
    note = lost_note(results, (*stages, "sparse"), arms)
    return f"{text}; {note}." if note else f"{text}."


def _contrasts(results: pd.DataFrame) -> list[str]:
    """The mean effect of each planned contrast; on a second line its cells, and what so few replicates could have shown."""
    effects, cells, lost = mean_effects(results), contrast_cells(results), lost_arms(results)
    sentences = []
    for effect in effects.to_dict("records"):
        mine = cells[(cells["label"] == effect["label"]) & (cells["against"] == effect["against"])]
        details = [*_means(effect, len(effects)), _cells(effect, mine, len(cells["p"].dropna()))]
        if effect["n"] > 1:
            details.append(
                f"The smallest effect that {effect['n']} replicates with this spread show with a power of 80 %: "
                f"{_points(effect['smallest'])} points."
            )
        missing = count_lost(lost[lost["label"].isin([effect["label"], effect["against"]])])
        upstream = lost_note(results, UPSTREAM)
        details += [f"{missing[0].upper()}{missing[1:]}."] if missing else []
        details += [f"{upstream[0].upper()}{upstream[1:]}, and what needs them."] if upstream else []
        sentences.append(f"{_mean_effect(effect)}\n{' '.join(details)}")
    return sentences


def _mean_effect(effect: dict[Any, Any]) -> str:
    first, second, difference, n = effect["label"], effect["against"], effect["difference"], effect["n"]
    if not effect["cells"]:
        return f"{first} against {second}: no cell has both of every replicate, so there is no mean effect."
    if n < 2:
        return f"{first} - {second}: {difference:+.1f} points on average in the one replicate, so there is no interval."
    if effect["p_holm"] < LEVEL:
        does, sign = ("beats", 1) if difference > 0 else ("is behind", -1)
        low, high = sorted((sign * effect["low"], sign * effect["high"]))
        return f"{first} {does} {second} by {_points(abs(difference))} points on average {_interval(low, high, effect)}."
    interval = _interval(effect["low"], effect["high"], effect, "+")
    return f"That {first} and {second} differ is not shown: {_points(difference, '+')} points on average {interval}."


def _interval(low: float, high: float, effect: dict[Any, Any], sign: str = "") -> str:
    """Write an interval in brackets, with as many digits as the mean effect."""
    ends = " to ".join(_points(end, sign, like=effect["difference"]) for end in (low, high))
    return f"(95 % confidence interval {ends}, n = {effect['n']} replicates)"


def _means(effect: dict[Any, Any], num_effects: int) -> list[str]:
    """Say what the mean effect is a mean of, and its p-values."""
    if not effect["cells"]:
        return []
    text = f"Mean effect per replicate over {_counted(effect['cells'], 'cell')}"
    if effect["cells"] < effect["cells_all"]:
        text += f" of {effect['cells_all']} (those that every replicate has)"
    text += "" if effect["design"] == "paired" else ", unpaired (Welch): the arms start from other dense networks"
    if effect["n"] > 1:
        text += f"; {_p(effect['p'])}"
        text += f", by Holm for {num_effects} contrasts {_p(effect['p_holm'])}" if num_effects > 1 else ""
    return [f"{text}."]


def _cells(effect: dict[Any, Any], cells: pd.DataFrame, num_tests: int) -> str:
    """Say in how many cells it is so, and in how many of those by the cell's own evidence."""
    difference = effect["difference"] if effect["cells"] else cells["difference"].mean()
    is_ahead = difference > 0
    alike = cells["difference"] > 0 if is_ahead else cells["difference"] < 0
    text = f"It is {'ahead' if is_ahead else 'behind'} in {alike.sum()} of {_counted(len(cells), 'cell')}"
    if len(cells) > 1:
        most = cells.loc[cells["difference"].idxmax() if is_ahead else cells["difference"].idxmin()]
        text += f", most at {_cell(most)}{_width(most['width'], cells)}: {most['difference']:+.1f} points"
    if cells["p"].notna().any():
        away = alike & ((cells["low"] > 0) | (cells["high"] < 0))
        sure = (away & (cells["p_holm"] < LEVEL)).sum()
        text += f"; in {away.sum() or 'none'} of them the cell's own 95 % interval leaves out 0"
        text += f", in {sure or 'none'} after Holm's correction for {num_tests} cells" if num_tests > 1 else ""
    return text + "."


def _recovered(results: pd.DataFrame) -> list[str]:
    """How much of the distance between naive and lth the permutation makes up for, where there is a distance."""
    sentences = []
    by_cell = recovered(results, by_cell=True)
    for row in recovered(results).to_dict("records"):
        cells = by_cell[by_cell["label"] == row["label"]]
        text = (
            f"{row['label']} makes up for {100 * row['share']:.0f} % of the distance from naive to lth (95 % interval "
            f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %, n = {row['n']} replicates).\n"
            f"Ratio of two mean effects per replicate over {_counted(row['cells'], 'cell')}, Fieller's interval"
        )
        if len(cells) and row["cells"] > 1:
            shares = f"from {100 * cells['share'].min():.0f} to {100 * cells['share'].max():.0f} %"
            text += f"; cell by cell {shares} in the {len(cells)} whose distance is significantly above 0"
        sentences.append(_noted(text, results, *UPSTREAM, arms=("lth", "permuted", "naive")))
    return sentences


def _barriers(barriers: pd.DataFrame, results: pd.DataFrame) -> list[str]:
    sentences = []
    test = barriers[barriers["split"] == "test"]
    match = ["width", "match_method", "match_epoch", "mask_finder"]
    for (width, method, epoch, finder), rows in matched_lines(test).groupby(match, observed=True, dropna=False):
        network = "" if pd.isna(finder) else f", with A as {finder} trained it"
        where = f"matched by {method} at epoch {epoch:.0f}{network}{_width(width, test)}"
        sentences.append(_noted(f"Between pi(A) and B, {where}, {_rise(rows)}", results, "dense"))
    cell = ["between", "width", "sparsity", "rewind_epoch"]
    others = test[test["carries_masks"].isna() & test["imp_round"].isna()].drop_duplicates(["key", "correction"])
    for (between, width, sparsity, rewind), rows in others.groupby(cell, dropna=False):
        is_of_cell = bool(set(between.split(" - ")) - DENSE)
        where = f" at sparsity {sparsity:g}, k = {rewind}" if is_of_cell else ""
        text = f"Between {between.replace(' - ', ' and ')}{where}{_width(width, test)}, {_rise(rows)}"
        stages = UPSTREAM if is_of_cell else ("dense",)
        sentences.append(_noted(text, results, *stages, arms=_bases(between)))
    return sentences


def _bases(between: str) -> list[str]:
    """Return the networks that a line goes through, as they are named before they are moved."""
    ends = (split_move(end) for end in between.split(" - "))
    return [end[1] for end in ends if end is not None]


def _rise(rows: pd.DataFrame) -> str:
    """Say the error barrier of lines by correction, with the signed rise at the midpoint."""
    parts = []
    for row in barrier_means(rows, ["correction"]).to_dict("records"):
        middle = with_interval_text(row, "error_mid", signed=True)
        middle = f", {middle} at the midpoint" if middle else ""
        parts.append(f"{with_interval_text(row, 'error_barrier')} points {HOW[row['correction']]}{middle}")
    number = _counted(rows["key"].nunique(), "line")
    interval = " and 95 % interval" if rows["key"].nunique() > 1 else ""
    return f"the test error barrier is {'; '.join(parts)} (mean{interval} of {number})"


def _ensembles(ensembles: pd.DataFrame, results: pd.DataFrame) -> list[str]:
    sentences = []
    for row in ensemble_table(ensembles).sort_values("disagreement", ascending=False).to_dict("records"):
        sets = (
            f"mean and 95 % interval of {row['sets']} sets, taken as independent"
            if row["sets"] > 1
            else "one set, so no interval"
        )
        text = (
            f"{row['members']} {row['set']} networks together reach {with_interval_text(row, 'ensemble_accuracy')} %, "
            f"{with_interval_text(row, 'gain', signed=True)} points over one alone; two of them disagree on "
            f"{100 * row['disagreement']:.0f} % of the samples (width {row['width']:g}; {sets})"
        )
        sentences.append(_noted(text, results, *UPSTREAM, arms=[row["set"]]))
    return sentences


def _masks(masks: pd.DataFrame, results: pd.DataFrame) -> list[str]:
    """How much of B's own mask A's has before and after the permutation, beyond chance."""
    sentences = []
    pairs = masks[(masks["layer"] == "all") & (masks["other"] == "B")]
    for (width, sparsity), rows in pairs.groupby(["width", "sparsity"], observed=True):
        means = 100 * rows.groupby("mask")[["jaccard", "expected_jaccard"]].mean()
        if {"A", "pi(A)"} <= set(means.index):
            text = (
                f"Of the weights that either keeps, pi(mask_A) and B's own mask share {means.loc['pi(A)', 'jaccard']:.1f} %, "
                f"mask_A and B's {means.loc['A', 'jaccard']:.1f} %; chance gives {means.loc['A', 'expected_jaccard']:.1f} % "
                f"(sparsity {sparsity:g}, width {width:g})"
            )
            sentences.append(_noted(text, results, *UPSTREAM))
    return sentences


def _width(width: float, rows: pd.DataFrame) -> str:
    return f", width {width:g}" if rows["width"].nunique() > 1 else ""


def _cell(row: "pd.Series[float]") -> str:
    return f"sparsity {row['sparsity']:g}, k = {row['rewind_epoch']:.0f}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _points(value: float, sign: str = "", like: float | None = None) -> str:
    """Return percentage points with as many digits as a difference of their size needs, or of the size of `like`."""
    return f"{value:{sign}.{1 if abs(value if like is None else like) >= 2 else 2}f}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
