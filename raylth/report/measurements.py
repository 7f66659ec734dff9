"""Analyses of one's own in the report: a table for each, and its figure if it has one."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from raylth.analyses import analysis_of
from raylth.arms import short_name

__all__ = ["NothingToShow", "analyses_in", "measurement_figure", "measurement_table", "summary_of", "wide_measurements"]

CELL = ["width", "sparsity", "rewind_epoch"]
LONG = ["row", "quantity", "value", "text"]  # columns of the table as it is stored


class NothingToShow(ValueError):
    """Why there is no figure or table of an analysis, in one line."""


def wide_measurements(measurements: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return one line for each row that the analysis `name` measured: its network's columns and a column per quantity.

    Quantities are in the order in which they were first measured; one that a row does not have is missing there.
    """
    found = measurements[measurements["analysis"] == name]
    own = list(dict.fromkeys(found["quantity"]))
    identity = [column for column in found.columns if column not in LONG and not found[column].isna().all()]
    texts = {quantity for quantity, rows in found.groupby("quantity", sort=False) if rows["text"].notna().any()}
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for record in found.to_dict("records"):
        line = lines.setdefault((record["key"], record["row"]), {column: record[column] for column in identity})
        line[record["quantity"]] = record["text"] if record["quantity"] in texts else record["value"]
    return pd.DataFrame(list(lines.values()), columns=[*identity, *own])


def analyses_in(measurements: pd.DataFrame) -> list[str]:
    """Return the names of the analyses that were measured."""
    return list(dict.fromkeys(measurements["analysis"].dropna()))


def summary_of(name: str) -> str:
    """Say what an analysis measures, as it says itself; where it is, when its module is not on this machine."""
    found = analysis_of(name)
    return found.summary if found else f"{name}, which is not on this machine: means over replicates."


def measurement_table(measurements: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return an analysis' own table; without one, means and standard deviations over replicates by cell and texts."""
    wide = wide_measurements(measurements, name)
    found = analysis_of(name)
    if found is not None and found.table is not None:
        made = found.table(wide)
        if not isinstance(made, pd.DataFrame):
            raise TypeError(f"expected a pandas.DataFrame, found a {type(made).__name__}")
        return made
    own = [column for column in wide.columns if column in set(measurements["quantity"])]
    numbers = [column for column in own if pd.api.types.is_numeric_dtype(wide[column])]
    by = [column for column in [*CELL, *own] if column in wide and column not in numbers]
    rows = []
    for values, group in wide.groupby(by, dropna=False, sort=False) if by else [((), wide)]:
        row: dict[str, Any] = dict(zip(by, values, strict=True))
        for column in numbers:
            row |= {column: group[column].mean(), f"{column} (sd)": group[column].std()}
        rows.append({**row, "replicates" if "n" in own else "n": group["replicate"].nunique()})
    return pd.DataFrame(rows)


def measurement_figure(measurements: pd.DataFrame, name: str, title: str) -> Figure:
    """Draw an analysis' own figure; NothingToShow, with the reason, where it has none."""
    found = analysis_of(name)
    if found is None or found.figure is None:
        raise NothingToShow(f"{short_name(name)} has no figure" if found else f"{name} is not on this machine")
    made = found.figure(wide_measurements(measurements, name), title)
    if not isinstance(made, Figure):
        raise TypeError(f"expected a matplotlib Figure, found a {type(made).__name__}")
    return made
