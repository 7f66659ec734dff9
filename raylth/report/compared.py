"""A comparison of runs as people read it: on a terminal, and as one HTML page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from raylth.report.comparison import LINE, Comparison
from raylth.report.display import View, as_view, decimals
from raylth.report.tables import CELL, with_interval_text
from raylth.report.templates import template
from raylth.store import Location

__all__ = ["Section", "sections_of", "write_comparison"]

HEADINGS = {"rewind_epoch": "rewind point k", "label": "arm", "cells": "cells averaged", "match_method": "matched by"}
WELCH = "paired where a replicate has the same networks A and B in both runs, otherwise unpaired (Welch)"


@dataclass(frozen=True)
class Section:
    """One table of a comparison, and what a reader must know of it."""

    title: str
    text: str
    view: View | None
    is_detail: bool = False  # too long for a terminal


def sections_of(found: Comparison) -> list[Section]:
    """Return the tables of a comparison, in their order."""
    first = found.runs[0]
    return [
        Section(
            "Settings that differ",
            "By key path; where and how a run was made is left out." if len(found.settings) else "None.",
            _view(found.settings) if len(found.settings) else None,
        ),
        Section(
            "Accuracy",
            "Test accuracy in percent: mean and standard deviation over replicates. Differences in percentage points to "
            f"{first}, with their 95 % interval of the cell alone: {WELCH}.",
            _accuracy(found),
        ),
        Section(
            "The planned contrasts",
            "Differences of arms in percentage points, averaged over the cells that all runs have whole, then over "
            f"replicates, with 95 % intervals (Student's t). Beside them how they differ from those of {first}: {WELCH}; "
            "p is Holm-corrected for all of these differences.",
            _contrasts(found, found.contrasts, ["cells"]),
        ),
        Section(
            "The planned contrasts, cell by cell",
            "As above; intervals are of the cell alone, p is corrected for all cells of all contrasts.",
            _contrasts(found, found.contrast_cells, CELL),
            is_detail=True,
        ),
        Section(
            "Barriers",
            "The most that the test error rises above the chord on lines that all runs have, percentage points: mean and "
            "95 % interval over replicates. A maximum, so noise raises it.",
            _barriers(found),
        ),
    ]


def write_comparison(found: Comparison, place: Location) -> Location:
    """Write a comparison as one HTML page that needs nothing else; returns its place."""
    page = template("compare.html.j2").render(runs=found.runs, sections=sections_of(found))
    place.write(page.encode())
    return place


Row = Mapping[str, Any]
Text = Callable[[Row], str]  # what a column says of a run


def _accuracy(found: Comparison) -> View | None:
    def mean(row: Row) -> str:
        return f"{row['mean']:.1f}" if pd.isna(row["std"]) else f"{row['mean']:.1f} ± {row['std']:.1f}"

    columns = {"{run} (%)": mean, "n in {run}": _count("n"), **_change(found.accuracy)}
    return _beside(found, found.accuracy, [*CELL, "label"], columns)


def _contrasts(found: Comparison, table: pd.DataFrame, where: Sequence[str]) -> View | None:
    def effect(row: Row) -> str:
        return with_interval_text(_bounded(row, "effect", "effect_low", "effect_high"), "effect", signed=True)

    table = table.assign(contrast=table["label"] + " - " + table["against"])
    columns = {"{run} (points)": effect, "n in {run}": _count("n"), **_change(table), "p of {run} - {first}": _p}
    return _beside(found, table, ["contrast", *where], columns)


def _barriers(found: Comparison) -> View | None:
    def barrier(row: Row) -> str:
        return with_interval_text(row, "error_barrier")

    keys = [name for name in LINE if name in found.barriers]
    return _beside(found, found.barriers, keys, {"{run} (points)": barrier, "n in {run}": _count("n")})


def _change(table: pd.DataFrame) -> dict[str, Text]:
    """Return the column of differences; where all are unpaired its heading says so, where some are their cells."""
    designs = set(table["design"].dropna())

    def difference(row: Row) -> str:
        text = with_interval_text(_bounded(row, "difference", "low", "high"), "difference", signed=True)
        return f"{text}, unpaired" if text and len(designs) > 1 and row["design"] == "unpaired" else text

    return {"{run} - {first} (points" + (", unpaired)" if designs == {"unpaired"} else ")"): difference}


def _p(row: Row) -> str:
    p = row["p_holm"]
    return "" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _bounded(row: Row, name: str, low: str, high: str) -> dict[str, Any]:
    return {name: row[name], f"{name}_low": row[low], f"{name}_high": row[high]}


def _count(name: str) -> Text:
    return lambda row: str(row[name])


def _beside(found: Comparison, table: pd.DataFrame, keys: Sequence[str], columns: Mapping[str, Text]) -> View | None:
    """Lay a long table out: a row per combination of `keys`, and of each of `columns` one for each run that has a text there.

    Keys that are alike in all rows are left out, and so are columns of numbers of networks where all are alike.
    """
    if table.empty:
        return None
    several = [name for name in keys if table[name].nunique(dropna=False) > 1] or list(keys[:1])
    shown: dict[str, list[str]] = {}
    places = table.groupby(list(keys), sort=False, dropna=False).ngroup()
    rows = [dict(zip(part["run"], part.to_dict("records"), strict=True)) for _, part in table.groupby(places, sort=False)]
    for name in several:
        values = [row[found.runs[0]][name] for row in rows]
        digits = decimals([value for value in values if isinstance(value, float) and not pd.isna(value)])
        shown[HEADINGS.get(name, name.replace("_", " "))] = [
            "" if pd.isna(value) else f"{value:.{digits}f}" if isinstance(value, float) else str(value) for value in values
        ]
    for heading, text in columns.items():
        texts = {heading.format(run=run, first=found.runs[0]): [text(row[run]) for row in rows] for run in found.runs}
        if heading.startswith("n in") and len({each for column in texts.values() for each in column}) == 1:
            texts = {"n": next(iter(texts.values()))}
        shown |= {name: column for name, column in texts.items() if any(column)}
    return _view(pd.DataFrame(shown))


def _view(frame: pd.DataFrame) -> View:
    """Return a table whose headings are no names of columns."""
    view = as_view(frame.set_axis([f"column {number}" for number in range(frame.shape[1])], axis=1))
    return replace(view, headings=[str(name) for name in frame])
