"""What a search tried and found: its table, its figure, and a sentence."""

import json
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from raylth.report.statistics import paired_differences
from raylth.report.style import ARM_COLOURS, new_figure, tidy
from raylth.store import Location

__all__ = ["load_search", "search_figure", "search_findings", "search_table"]

COLUMNS = ["study", "number", "state", "is_best", "settings", "accuracy", "model_sparsity", "holdout"]
OBJECTIVES = ("accuracy", "model_sparsity")


def load_search(run: Location) -> pd.DataFrame:
    """Load one row per ended trial of the search that a run comes from; no row for a run that comes from none.

    `accuracy` is percent on the holdout, `settings` is text, `state` complete or pruned (stopped early).
    """
    try:
        found: dict[str, Any] = json.loads((run / "search.json").read())
    except FileNotFoundError:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    for study in found["studies"]:
        for trial in study["trials"]:
            values = {name: trial["values"].get(name) for name in OBJECTIVES}
            settings = ", ".join(f"{name} = {_short(value)}" for name, value in trial["params"].items())
            facts = {name: trial[name] for name in ("number", "state", "is_best")}
            rows.append({"study": study["study"], "settings": settings, "holdout": found["holdout"], **facts, **values})
    return pd.DataFrame(rows, columns=COLUMNS)


def search_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the best trials: of each study one, or its Pareto front."""
    if trials.empty:
        return pd.DataFrame()
    best = trials[trials["is_best"].astype(bool)]
    counts = trials.groupby("study", sort=False)["state"].agg(
        trials="size", stopped=lambda states: (states == "pruned").sum()
    )
    columns = ["study", "settings", *(name for name in OBJECTIVES if best[name].notna().any()), "trials", "stopped"]
    return (
        best.merge(counts, left_on="study", right_index=True).sort_values(["study", "number"])[columns].reset_index(drop=True)
    )


def search_figure(trials: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy on the holdout against the trial with the best so far; with two objectives, against sparsity with the
    Pareto front. Raises ValueError when there was no search."""
    ended = trials[trials["state"] == "complete"]
    if ended.empty:
        raise ValueError("there was no search, so there is nothing to draw")
    is_front = ended["model_sparsity"].notna().any()
    figure = new_figure(6.4, 4.2, title)
    axis = figure.subplots()
    for study, rows in ended.groupby("study", sort=False):
        colour = ARM_COLOURS.get(str(study), "black")
        across = rows["model_sparsity"] if is_front else rows["number"] + 1
        axis.scatter(across, rows["accuracy"], s=14, color=colour, alpha=0.5)
        if is_front:
            front = rows[rows["is_best"].astype(bool)].sort_values("model_sparsity")
            axis.plot(front["model_sparsity"], front["accuracy"], color=colour, marker="o", markersize=4, label=study)
        else:
            ordered = rows.sort_values("number")
            best = ordered["accuracy"].cummax()
            axis.step(ordered["number"] + 1, best, where="post", color=colour, label=study)
    axis.set_xlabel("model sparsity" if is_front else "trial")
    axis.set_ylabel("accuracy on the holdout (%)")
    axis.legend(fontsize=8, frameon=False)
    tidy(axis)
    return figure


def search_findings(trials: pd.DataFrame, results: pd.DataFrame) -> list[str]:
    """Say what each arm's best settings are, and whether the permutation still gains at them."""
    if trials.empty:
        return []
    best = search_table(trials)
    counts = trials.groupby("study", sort=False).size()
    said = [f"{row['study']}: {row['settings']}" for _, row in best.iterrows()]
    each = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    found = [f"Best of {each} trials each on {trials['holdout'].iloc[0]:,} held-out training samples: {'; '.join(said)}."]
    pairs = paired_differences(results)
    for _, pair in pairs.dropna(subset=["low"]).iterrows():
        where = f"sparsity {pair['sparsity']:g}, k = {pair['rewind_epoch']:.0f}"
        does = "survives" if pair["low"] > 0 else "does not survive" if pair["high"] < 0 else "is not certain"
        found.append(
            f"That {pair['label']} is better than naive {does} where each has its own best settings ({where}): "
            f"{pair['difference']:+.1f} points, 95 % confidence interval {pair['low']:+.1f} to {pair['high']:+.1f} "
            f"(n = {pair['n']})."
        )
    return found


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
