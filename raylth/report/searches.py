"""What a search tried and found: its table, its figure, and a sentence."""

import pandas as pd
from matplotlib.figure import Figure

from raylth.arms import arm_of
from raylth.report.repeats import Difference, difference_of
from raylth.report.style import SINGLE, new_figure, tidy
from raylth.report.tables import CELL, finished_arms
from raylth.store import Location
from raylth.store.run_files import read_run_file

__all__ = ["load_search", "search_figure", "search_findings", "search_table"]

COLUMNS = [
    "study", "repeat", "number", "state", "is_best", "settings", "edges", "epochs", "accuracy", "model_sparsity", "holdout",
]  # fmt: skip
OBJECTIVES = ("accuracy", "model_sparsity")


def load_search(run: Location) -> pd.DataFrame:
    """Load one row per ended trial of the search that a run comes from; no row for a run that comes from none.

    `accuracy` is percent on the holdout, `settings` is text, `state` complete or pruned (stopped early), `epochs` what the
    trial trained of its arms, `edges` the settings of a best trial that lie at the end of their range, as text.
    """
    try:
        found = read_run_file(run / "search.json", needed=("studies", "holdout"))
    except FileNotFoundError:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    for study in found["studies"]:
        for trial in study["trials"]:
            values = {name: trial["values"].get(name) for name in OBJECTIVES}
            settings = ", ".join(f"{name} = {_short(value)}" for name, value in trial["params"].items())
            facts = {name: trial[name] for name in ("number", "state", "is_best")}
            facts |= {"epochs": trial.get("epochs"), "edges": "; ".join(trial.get("edges", []))}
            which = {"study": study["study"], "repeat": study.get("repeat", 1), "holdout": found["holdout"]}
            rows.append({**which, "settings": settings, **facts, **values})
    return pd.DataFrame(rows, columns=COLUMNS)


def search_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the best trials, of each study one or its Pareto front, with what the whole study took: its trials, how many of
    them were stopped, and the epochs that they trained."""
    if trials.empty:
        return pd.DataFrame()
    best = trials[trials["is_best"].astype(bool)].drop(columns="epochs")
    study = ["study", "repeat"]
    counts = trials.groupby(study, sort=False).agg(
        trials=("number", "size"),
        stopped=("state", lambda states: (states == "pruned").sum()),
        epochs=("epochs", lambda epochs: epochs.sum(min_count=1)),
    )
    counts = counts.drop(columns=[] if counts["epochs"].notna().any() else "epochs")  # of a search before they were counted
    columns = ["study", *(["repeat"] if trials["repeat"].nunique() > 1 else []), "settings"]
    columns += [name for name in OBJECTIVES if best[name].notna().any()]
    columns += [*(["edges"] if (best["edges"] != "").any() else []), *counts.columns]
    found = best.merge(counts, left_on=study, right_index=True).sort_values([*study, "number"])
    return found[columns].reset_index(drop=True)


def search_figure(trials: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy on the holdout against the trial with the best so far; with two objectives, against sparsity with the
    Pareto front. Raises ValueError when there was no search."""
    ended = trials[trials["state"] == "complete"]
    if ended.empty:
        raise ValueError("no trial has completed")
    is_front = ended["model_sparsity"].notna().any()
    figure = new_figure(SINGLE, 3.6, title)
    axis = figure.subplots()
    for (study, repeat), rows in ended.groupby(["study", "repeat"], sort=False):
        colour = "black" if study == "shared" else arm_of(str(study)).colour
        label = str(study) if repeat == ended[ended["study"] == study]["repeat"].min() else None  # once in the legend
        across = rows["model_sparsity"] if is_front else rows["number"] + 1
        axis.scatter(across, rows["accuracy"], s=14, color=colour, alpha=0.5)
        if is_front:
            front = rows[rows["is_best"].astype(bool)].sort_values("model_sparsity")
            axis.plot(front["model_sparsity"], front["accuracy"], color=colour, marker="o", markersize=4, label=label)
        else:
            ordered = rows.sort_values("number")
            best = ordered["accuracy"].cummax()
            axis.step(ordered["number"] + 1, best, where="post", color=colour, label=label)
    axis.set_xlabel("model sparsity" if is_front else "trial")
    axis.set_ylabel("accuracy on the holdout (%)")
    axis.legend(fontsize=8, frameon=False)
    tidy(axis)
    return figure


def search_findings(trials: pd.DataFrame, results: pd.DataFrame) -> list[str]:
    """Say what each arm's best settings are, which lie at an end of their range, and whether the permutation still gains."""
    if trials.empty:
        return []
    best = search_table(trials)
    names = best[["study", "repeat"] if "repeat" in best else ["study"]].astype(str).agg(" ".join, axis=1)
    counts = trials.groupby(["study", "repeat"], sort=False).size()
    parts = [f"{name}: {settings}" for name, settings in zip(names, best["settings"], strict=True)]
    each = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    times = f", in {trials['repeat'].nunique()} independent searches" if "repeat" in best else ""
    found = [
        f"Best of {each} trials each on {trials['holdout'].iloc[0]:,} held-out training samples{times}: {'; '.join(parts)}."
    ]
    if "edges" in best:
        edges = [f"{name}: {edge}" for name, edge in zip(names, best["edges"], strict=True) if edge]
        found.append(f"Warning: better settings may lie beyond the range that was searched. {'; '.join(edges)}.")
    arms = finished_arms(results)
    for cell, ours in arms[arms["arm"] == "permuted"].groupby([*CELL, "label"], observed=True):
        theirs = arms[(arms["arm"] == "naive") & (arms[list(CELL)] == list(cell[: len(CELL)])).all(axis=1)]
        difference = difference_of(ours, theirs)
        if difference is not None and difference.estimate.df > 0:
            found.append(_survives(f"sparsity {cell[1]:g}, k = {cell[2]:.0f}", str(cell[-1]), difference))
    return found


def _survives(where: str, label: str, difference: Difference) -> str:
    """Say whether an arm's gain over naive is certain, from what, and what the interval does not count."""
    low, high = difference.estimate.interval
    does = "survives" if low > 0 else "does not survive" if high < 0 else "is not certain"
    how = f"n = {difference.pairs}"
    if not difference.is_paired:
        how += " networks of each, unpaired, since the best settings give the arms other dense networks or masks; Welch"
    if len(difference.by_repeat) > 1:
        by_repeat = ", ".join(f"{value:+.1f}" for value in difference.by_repeat)
        how += (
            f"; {len(difference.by_repeat)} independent searches: {by_repeat}; the interval counts the variance between them"
        )
    else:
        how += "; one search: what another would have found is not in the interval, search.repeats counts it"
    return (
        f"That {label} is better than naive {does} where each has its own best settings ({where}): "
        f"{difference.estimate.value:+.1f} points, 95 % confidence interval {low:+.1f} to {high:+.1f} ({how})."
    )


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
