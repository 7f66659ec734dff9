"""What the page of a run shows of its results: points of figures and tables, as plain objects made by raylth.report."""

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from raylth.arms import arm_of
from raylth.report.display import as_view
from raylth.report.entry import Frames
from raylth.report.labels import readable
from raylth.report.landscape import line_name
from raylth.report.lost import lost_networks
from raylth.report.measurements import NothingToShow
from raylth.report.points import LINE, accuracy_points, curve_points, dense_points, line_points
from raylth.report.sections import findings_of, made_table, notes_of, tables_of
from raylth.report.statistics import contrast_cells, mean_effects, planned
from raylth.report.style import CORRECTION_STYLES, looks_of
from raylth.report.tables import CELL
from raylth.store import Location

__all__ = ["MARKS", "cell_id", "columns_of", "curves_data", "read_frames", "reason_of", "run_data"]

MARKS = {  # matplotlib's marker -> Plotly's symbol, and a character for legends
    "o": ("circle", "●"), "s": ("square", "■"), "^": ("triangle-up", "▲"), "v": ("triangle-down", "▼"), "x": ("x", "✕"),
    "p": ("pentagon", "⬟"), "<": ("triangle-left", "◀"), ">": ("triangle-right", "▶"), "h": ("hexagon", "⬢"),
    "D": ("diamond", "◆"),
}  # fmt: skip
DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
OTHER_MARK, OTHER_DASH = ("diamond-open", "◇"), "longdashdot"
READING = threading.Lock()  # what is recorded of warnings is of the whole process
NO_CELLS: dict[str, list[Any]] = {name: [] for name in (*CELL, "id")}
LINE_KIND = [*LINE, "match_epoch", "match_samples", "mask_finder"]
LOST = ["stage", "network", "arm", "width", "sparsity", "rewind_epoch", "replicate", "status", "error"]


def read_frames(run: Location) -> tuple[Frames | None, list[str]]:
    """Return what a run has written, and what could not be read of it, a line each; None where nothing can be shown yet."""
    with READING, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frames = Frames.load(run)
        except FileNotFoundError:
            return None, ["No network has finished yet: figures and tables appear here when one has."]
        except OSError:  # the store does not answer
            raise
        except Exception as error:  # a newer version's, or harmed
            return None, [f"The results cannot be read: {reason_of(error)}"]
    return frames, list(dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning))


def run_data(run: Location) -> dict[str, Any]:
    """Return all but the learning curves: what can be chosen, points of figures by column, findings and tables.

    A part that cannot be made, whatever the reason, is empty, and `notes` has the reason. Values that are missing are None.
    """
    frames, notes = read_frames(run)
    is_empty = frames is None
    frames = frames or _no_frames()
    results = frames.results

    def part(make: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return make()
        except Exception as error:  # a fault of one part hides no other one
            if (why := reason_of(error)) not in notes:
                notes.append(why)
            return otherwise

    accuracy = part(lambda: accuracy_points(results), pd.DataFrame())
    return {
        "arms": part(lambda: _arms(accuracy), []),
        "corrections": [{"label": name, **_look(*look)} for name, look in CORRECTION_STYLES.items()],
        "choices": {name: _distinct(accuracy, name) for name in CELL},
        "accuracy": part(lambda: columns_of(_with_bars(accuracy, "mean")), {}),
        "dense": part(lambda: columns_of(dense_points(results)), {}),
        "effects": part(lambda: columns_of(mean_effects(results)), {}),
        "contrasts": part(lambda: columns_of(_with_bars(_contrasts(results), "difference")), {}),
        "lines": part(lambda: columns_of(_lines(frames.lines)), {}),
        "curve_cells": part(lambda: columns_of(_curve_cells(curve_points(results, frames.curves))), NO_CELLS),
        "findings": part(lambda: _findings(frames), []),
        "lost": part(lambda: _view(lost_networks(results).reindex(columns=LOST)) if len(results) else None, None),
        **({"tables": [], "missing": []} if is_empty else _tables(frames)),
        "notes": notes,
    }


def curves_data(run: Location) -> dict[str, dict[str, Any]]:
    """Return the learning curves of each cell by `cell_id`, the dense networks of its width among them, by column.

    `lower` and `upper` are one standard deviation from the mean.
    """
    frames, _ = read_frames(run)
    if frames is None:
        return {}
    try:
        points = curve_points(frames.results, frames.curves)
    except Exception:  # `run_data` has the reason
        return {}
    points = points.assign(lower=points["mean"] - points["std"], upper=points["mean"] + points["std"])
    found = {}
    for cell in _curve_cells(points).to_dict("records"):
        is_cell = (points["sparsity"] == cell["sparsity"]) & (points["rewind_epoch"] == cell["rewind_epoch"])
        mine = points[(points["width"] == cell["width"]) & (is_cell.fillna(False) | (points["label"] == "dense"))]
        found[cell["id"]] = columns_of(mine[["label", "measure", "epoch", "mean", "std", "lower", "upper", "n"]])
    return found


def columns_of(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a table by column as JSON has it: numbers with all their digits, None where a value is missing."""
    found = {}
    for name in frame:
        values = frame[name].replace([np.inf, -np.inf], np.nan)
        found[str(name)] = values.astype(object).where(values.notna(), None).tolist()
    return found


def cell_id(width: float, sparsity: float | None, rewind_epoch: int | None) -> str:
    """Return the name that a cell has in addresses; without a sparsity that of the dense networks of a width."""
    return f"{width!r}-dense" if sparsity is None else f"{width!r}-{sparsity!r}-{rewind_epoch}"


def _no_frames() -> Frames:
    from raylth.report.searches import COLUMNS
    from raylth.store.tables import DATASETS

    empty = {name: DATASETS[name].empty_table().to_pandas() for name in DATASETS}
    return Frames(**empty, search=pd.DataFrame(columns=COLUMNS))


def _with_bars(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return points with the lengths of their error bars, which Plotly draws, beside the interval."""
    if frame.empty:
        return frame
    return frame.assign(minus=frame[value] - frame["low"], plus=frame["high"] - frame[value])


def _contrasts(results: pd.DataFrame) -> pd.DataFrame:
    """Return the planned contrasts cell by cell; none where no two arms of one have finished."""
    return contrast_cells(results) if planned(results) else pd.DataFrame()


def _lines(lines: pd.DataFrame) -> pd.DataFrame:
    """Return the points of all lines, each with the `name` of its kind."""
    points = line_points(lines, LINE_KIND)
    if points.empty:
        return points
    names = []
    for row in points.to_dict("records"):
        name = line_name(pd.Series(row), points)
        if points["match_epoch"].nunique() > 1 and pd.notna(row["match_epoch"]):
            name += f", matched at epoch {row['match_epoch']}"
        if pd.notna(row["match_samples"]):
            name += f", on {row['match_samples']} samples"
        if points["mask_finder"].nunique() > 1 and pd.notna(row["mask_finder"]):
            name += f", {row['mask_finder']}"
        names.append(name)
    return points.assign(name=names)


def _curve_cells(points: pd.DataFrame) -> pd.DataFrame:
    """Return the cells that have a learning curve, in their order; the dense networks alone where no arm has one."""
    columns = [*CELL, "id"]
    if points.empty:
        return pd.DataFrame(columns=columns)
    arms = points[points["label"] != "dense"]
    cells = (arms if len(arms) else points)[list(CELL)].drop_duplicates().sort_values(list(CELL))
    ids = [
        cell_id(width, None if pd.isna(sparsity) else sparsity, None if pd.isna(rewind) else int(rewind))
        for width, sparsity, rewind in cells.itertuples(index=False)
    ]
    return cells.assign(id=ids)


def _arms(accuracy: pd.DataFrame) -> list[dict[str, Any]]:
    """Return how each arm is named and drawn, in the order of legends."""
    if accuracy.empty:
        return []
    looks = looks_of(zip(accuracy["arm"].astype(str), accuracy["label"], strict=True))
    return [
        {"label": label, "summary": arm_of(arm).summary, **_look(look["color"], look["marker"], look["linestyle"])}
        for (arm, label), look in looks.items()
    ]


def _look(colour: str, marker: str, dash: Any) -> dict[str, str]:
    symbol, glyph = MARKS.get(marker, OTHER_MARK)
    return {"colour": colour, "symbol": symbol, "glyph": glyph, "dash": DASHES.get(dash, OTHER_DASH)}


def _distinct(frame: pd.DataFrame, name: str) -> Sequence[Any]:
    return sorted(frame[name].dropna().unique().tolist()) if name in frame else []


def _findings(frames: Frames) -> list[list[str]]:
    """Return each finding as its sentence and the details below it."""
    return [readable(sentence).split("\n") for sentence in findings_of(frames)]


def reason_of(error: Exception) -> str:
    """Return why a part cannot be made, in one line: a ValueError's text says it, of others the class is a part of it."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def _tables(frames: Frames) -> dict[str, list[dict[str, Any]]]:
    """Return the report's tables as text, and what it has none of, with the reason."""
    shown, missing = [], []
    for entry in tables_of(frames):
        try:
            with entry.guarded("table"):
                made, nothing = made_table(entry, frames), entry.nothing
            if made is not None:
                notes = [readable(note) for note in notes_of(entry, frames)]
                about = {"name": entry.name, "title": readable(entry.title), "text": readable(entry.text), "notes": notes}
                shown.append({**about, **_view_of(made[1])})
            elif nothing and entry.has_place(frames):
                missing.append({"title": readable(entry.title), "reason": readable(nothing)})
        except NothingToShow as error:
            missing.append({"title": readable(entry.title), "reason": readable(str(error))})
        except ValueError:  # of runs that cannot be averaged: `notes` has the reason
            continue
        except Exception as error:  # a fault of one table hides no other one
            missing.append({"title": readable(entry.title), "reason": reason_of(error)})
    return {"tables": shown, "missing": missing}


def _view(frame: pd.DataFrame) -> dict[str, Any] | None:
    return None if frame.empty else _view_of(as_view(frame))


def _view_of(view: Any) -> dict[str, Any]:
    return {
        "headings": view.headings,
        "are_numbers": view.are_numbers,
        "rows": [[readable(text) for text in row] for row in view.rows],
    }
