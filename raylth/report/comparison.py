"""Two or more runs side by side: accuracies, planned contrasts and barriers of the cells that all have, and what differs.

Differences between runs are paired where the replicates are the same, as those between arms are; else they are Welch's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from raylth.arms import rank
from raylth.common.omit import without_later
from raylth.report.estimates import Estimate, apart, holm
from raylth.report.repeats import ON, PAIR_KEY, crossed_mean, difference_of
from raylth.report.results import load_barriers, load_manifest, load_results
from raylth.report.statistics import TwoArms, planned, two_arms
from raylth.report.tables import CELL, accuracy_table, barrier_means, finished_arms
from raylth.store import Location, locate

__all__ = ["Comparison", "compare"]

SHOWN_DIGITS = 3
DISTANCE = ("lth", "naive")  # that a permutation may make up for
NOT_COMPARED = ("name", "storage")  # settings that say where a run is, not what it is
PAIRING = ("data", "model", "seeds.base", "dense")  # settings behind A and B
PLACES = ("data.root", "data.download")  # of them, those that change nothing
LINE = ["between", "width", "sparsity", "rewind_epoch", "match_method", "match_epoch", "correction"]


@dataclass(frozen=True)
class Comparison:
    """What runs have in common and where they differ, the first being what others are compared with.

    `settings`: a row per setting that differs (key path), a column per run. `accuracy`: a row per run, cell (width, sparsity,
    rewind point) and arm that all runs have: `mean`, `std`, `n` in percent, and, from the second run on, the `difference` to
    the first in percentage points with its 95 % interval `low` to `high`, `pairs`, `p`, and `design` (paired or unpaired).
    An arm that a run matched in several ways has a name for each, and is compared with the same names only.
    `contrasts`: a row per run and contrast of two arms, over the cells that all runs have whole: `effect` with `effect_low`
    and `effect_high`, `cells` and `n`, and the `difference` of the effects to the first run's, likewise; `p_holm` is
    corrected for all of them. `contrast_cells`: the same cell by cell. `barriers`: a row per run and line that all have, on
    the test split.
    """

    runs: tuple[str, ...]
    settings: pd.DataFrame
    accuracy: pd.DataFrame
    contrasts: pd.DataFrame
    contrast_cells: pd.DataFrame
    barriers: pd.DataFrame

    def _repr_html_(self) -> str:
        """Show the comparison in a notebook; what is cell by cell of the contrasts is left out."""
        shown = ("settings", "accuracy", "contrasts", "barriers")
        tables = {name: getattr(self, name).round(SHOWN_DIGITS) for name in shown}
        heading = f"<p>{escape(' and '.join(self.runs))}; differences are to the first</p>"
        parts = [f"<h4>{name}</h4>{table.to_html(index=False, na_rep='')}" for name, table in tables.items() if len(table)]
        return "".join([heading, *parts])


@dataclass(frozen=True)
class _Run:
    name: str
    config: dict[str, Any]
    results: pd.DataFrame
    arms: pd.DataFrame  # `finished_arms`
    barriers: pd.DataFrame


def compare(runs: Sequence[str | Path | Location]) -> Comparison:
    """Compare two or more runs, each a folder `<store>/runs/<run>` or a store that has one run.

    A replicate is the same in two runs where it has the same networks A and B: by their record (`pair_key`), or by seeds and
    all settings behind them. Raises FileNotFoundError for a run that is not there, ValueError for
    fewer than two runs, one that is named twice, and runs without a cell in common.
    """
    if len(runs) < 2:
        raise ValueError("a comparison needs two runs or more")
    places = [_place(run) for run in runs]
    for number, place in enumerate(places):
        if str(place.absolute()) in [str(other.absolute()) for other in places[:number]]:
            raise ValueError(f"{place}: named twice")
    read = _named(places)
    accuracy = _accuracy(read)
    if accuracy.empty:
        there = "; ".join(f"{run.name}: {_cells_of(run.arms)}" for run in read)
        raise ValueError(f"no arm of these runs has a cell in all of them ({there})")
    contrasts, cells = _contrasts(read)
    return Comparison(tuple(run.name for run in read), _settings(read), accuracy, contrasts, cells, _barriers(read))


def _place(run: str | Path | Location) -> Location:
    """Return a run's folder; FileNotFoundError or ValueError where that is not one."""
    place = run if isinstance(run, Location) else locate(str(run).rstrip("/") or "/")
    if (place / "manifest.json").exists():
        return place
    found = [name for name in (place / "runs").names() if (place / "runs" / name / "manifest.json").exists()]
    if not found:
        raise FileNotFoundError(f"{place}: no run here; expected {place}/manifest.json, or a store with one run")
    if len(found) > 1:
        raise ValueError(f"{place}: has {len(found)} runs, name one: {', '.join(f'runs/{name}' for name in sorted(found))}")
    return place / "runs" / found[0]


def _named(places: Sequence[Location]) -> list[_Run]:
    """Load runs; each is called by its sweep's name where no other has that, else by its own, with its store's, or place."""
    configs = [without_later(load_manifest(place)["config"]) for place in places]  # an earlier version's lacks them
    named = (
        [str(config["name"]) for config in configs],
        [place.name for place in places],
        [f"{place.parent.parent.name}/{place.name}" for place in places],
        [str(place) for place in places],
    )
    for names in named:
        if len(set(names)) == len(names):
            break
    read = []
    for name, config, place in zip(names, configs, places, strict=True):
        try:
            barriers = load_barriers(place)
        except FileNotFoundError:
            barriers = pd.DataFrame(columns=[*LINE, "key", "split"])
        results = load_results(place)
        read.append(_Run(name, config, results, finished_arms(results), barriers))
    return read


def _cells_of(arms: pd.DataFrame) -> str:
    """Say which arms and cells a run has."""
    if arms.empty:
        return "no finished arm"
    named = {name: ", ".join(f"{value:g}" for value in sorted(arms[name].unique())) for name in CELL}
    cells = f"width {named['width']}, sparsity {named['sparsity']}, rewind point {named['rewind_epoch']}"
    return f"{', '.join(arms['label'].unique())} at {cells}"


def _settings(runs: Sequence[_Run]) -> pd.DataFrame:
    """Return the settings that differ: a row per key path, a column per run."""
    flat = [_flat(run.config) for run in runs]
    data = [sorted(run.results.get("data_sha256", pd.Series()).dropna().unique()) for run in runs]
    if len(set(map(str, data))) > 1:
        flat = [
            {**each, "data (SHA-256)": ", ".join(name[:8] for name in names)} for each, names in zip(flat, data, strict=True)
        ]
    paths = dict.fromkeys(path for each in flat for path in each if path.split(".")[0] not in NOT_COMPARED)
    rows = [
        {"setting": path, **{run.name: each.get(path, "not set") for run, each in zip(runs, flat, strict=True)}}
        for path in paths
    ]
    differing = [row for row in rows if len({row[run.name] for run in runs}) > 1]
    return pd.DataFrame(differing, columns=["setting", *(run.name for run in runs)])


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return settings by their key paths, as text."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        elif value != {}:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def _accuracy(runs: Sequence[_Run]) -> pd.DataFrame:
    """Return the accuracies of the cells that all runs have, with what each run differs in from the first."""
    row = [*CELL, "arm", "label"]
    tables = [accuracy_table(run.results).set_index(row) for run in runs]
    shared = sorted(
        set.intersection(*(set(table.index[table["n"] > 0]) for table in tables)),
        key=lambda cell: (*cell[:3], rank(cell[3]), cell[4]),
    )
    rows = []
    for cell in shared:
        first = _in_cell(runs[0].arms, cell)
        for number, (run, table) in enumerate(zip(runs, tables, strict=True)):
            found = {"run": run.name, **dict(zip(row, cell, strict=True)), **table.loc[cell, ["mean", "std", "n"]]}
            if number:
                own = _in_cell(run.arms, cell)
                is_paired = _are_same(own, first, runs[0], run)
                change = difference_of(own, first, is_paired=is_paired)
                if change is not None:
                    found |= {**_change(change.estimate, is_paired=is_paired), "pairs": change.pairs}
            rows.append(found)
    columns = ["run", *row, "mean", "std", "n", "difference", "low", "high", "pairs", "p", "design"]
    return pd.DataFrame(rows, columns=columns).drop(columns="arm").astype({"n": int, "pairs": "Int64"})


def _in_cell(arms: pd.DataFrame, cell: tuple[Any, ...]) -> pd.DataFrame:
    wanted = (arms["label"] == cell[4]) & (arms["arm"] == cell[3])
    for name, value in zip(CELL, cell[:3], strict=True):
        wanted &= arms[name] == value
    return arms[wanted]


def _change(estimate: Estimate, *, is_paired: bool) -> dict[str, Any]:
    low, high = estimate.interval
    design = "paired" if is_paired else "unpaired"
    return {"difference": estimate.value, "low": low, "high": high, "p": estimate.p, "design": design}


def _are_same(own: pd.DataFrame, other: pd.DataFrame, *runs: _Run) -> bool:
    """Whether the replicates that two runs both have are the same, that is, have the same networks A and B.

    They have where arms share them and A's mask by their own record (`pair_key`), and where seeds and all settings behind
    them are equal; what a search found is in no settings.
    """
    both = own.merge(other, on=[*CELL, "label", *ON], suffixes=("", "_other"))
    if both.empty:
        return False

    def agree(name: str) -> bool:
        ours, theirs = (both.get(column) for column in (name, f"{name}_other"))  # an earlier version's rows lack some
        return ours is not None and theirs is not None and bool((ours == theirs).fillna(False).all())

    if agree(PAIR_KEY):
        return True
    first, second = (
        {path: text for path, text in _flat(run.config).items() if path.startswith(PAIRING) and path not in PLACES}
        for run in runs
    )
    is_searched = any(run.config.get("search") for run in runs)
    return agree("seed_a") and agree("seed_b") and agree("data_sha256") and first == second and not is_searched


def _contrasts(runs: Sequence[_Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the planned contrasts of all runs over the cells that all have whole, and cell by cell."""
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    for names in [DISTANCE, *planned(runs[0].results)]:
        parts = [{(part.label, part.against): part for part in two_arms(run.results, *names).parts()} for run in runs]
        for pair in (pair for pair in parts[0] if all(pair in each for each in parts)):
            arms = [each[pair] for each in parts]
            cells = sorted(set.intersection(*(set(each.complete_cells()) for each in arms)))
            if not cells:
                continue
            label = {"label": pair[0], "against": pair[1]}
            are_same = [_have_same(run, own, runs[0], arms[0]) for run, own in zip(runs, arms, strict=True)]
            rows[0].extend({**label, "cells": len(cells), **row} for row in _effects(runs, arms, are_same, cells))
            for cell in cells:
                at = {**label, **dict(zip(CELL, cell, strict=True))}
                rows[1].extend({**at, **row} for row in _effects(runs, arms, are_same, [cell]))
    changes = ["difference", "low", "high", "pairs", "p", "p_holm", "design"]
    effects = ["effect", "effect_low", "effect_high", "n"]
    tables = []
    for found, where in zip(rows, (["cells"], [*CELL]), strict=True):
        table = pd.DataFrame(found, columns=["run", "label", "against", *where, *effects, *changes])
        table["p_holm"] = holm(table["p"].astype(float))
        tables.append(table.astype({"pairs": "Int64"}))
    return tables[0], tables[1]


def _have_same(run: _Run, own: TwoArms, first: _Run, others: TwoArms) -> bool:
    """Whether the effect of two arms in a run and in the first one is of the same replicates, by pairs in both."""
    if not (own.is_paired and others.is_paired):
        return False
    labels = [own.label, own.against]
    return all(_are_same(*(each.arms[each.arms["label"] == label] for each in (run, first)), run, first) for label in labels)


def _effects(
    runs: Sequence[_Run], arms: Sequence[TwoArms], are_same: Sequence[bool], cells: Sequence[tuple[float, ...]]
) -> list[dict[str, Any]]:
    """Return the mean effect of two arms over cells in each run, and what it differs in from the first run's."""
    rows, first = [], arms[0]
    for number, (run, own, is_paired) in enumerate(zip(runs, arms, are_same, strict=True)):
        effect, count = own.effect(cells), own.num_replicates(cells)
        low, high = effect.interval
        row = {"run": run.name, "effect": effect.value, "effect_low": low, "effect_high": high, "n": count}
        if number and is_paired:
            means = [each.tables[0][list(cells)].mean(axis=1) for each in (own, first)]
            differences = (means[0] - means[1]).dropna()
            row |= {**_change(crossed_mean(differences), is_paired=True)}
            row["pairs"] = differences.index.get_level_values("replicate").nunique()
        elif number:
            change = apart(effect, first.effect(cells))
            row |= {**_change(change, is_paired=False), "pairs": min(count, first.num_replicates(cells))}
        rows.append(row)
    return rows


def _barriers(runs: Sequence[_Run]) -> pd.DataFrame:
    """Return the barriers of the lines that all runs have, on the test split."""
    tables = []
    for run in runs:
        lines = run.barriers[run.barriers["split"] == "test"].reindex(
            columns=[*dict.fromkeys([*run.barriers.columns, *LINE])]
        )
        tables.append(barrier_means(lines, LINE))
    keys = [
        [tuple(None if pd.isna(value) else value for value in row) for row in table[LINE].itertuples(index=False)]
        for table in tables
    ]
    shared = [key for key in keys[0] if all(key in each for each in keys)]
    rows = [
        {"run": run.name, **table.iloc[found.index(key)]}
        for key in shared
        for run, table, found in zip(runs, tables, keys, strict=True)
    ]
    measures = [f"{name}{end}" for name in ("error_barrier", "error_mid") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["run", *LINE, *measures, "n"])
