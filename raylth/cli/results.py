"""Questions to a store's results in SQL: `python -m raylth.results STORE 'SQL'`, through DuckDB."""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylth.common.exit_codes import ExitCode, describe
from raylth.common.paths import expanded
from raylth.report import results
from raylth.store import Location, locate
from raylth.store.tables import DATASETS

__all__ = ["main", "make_parser"]

SHOWN = 200  # rows of a table
WIDE = 20  # characters that a text may have where room is short
DESCRIPTION = """\
Ask a store's results in SQL (DuckDB's); without SQL: list tables and columns.

examples:
  python -m raylth.results raylth-store
  python -m raylth.results raylth-store "SELECT dataset, model, width, settings, arm, sparsity, rewind_epoch,
      match_method, match_epoch, avg(test_accuracy) AS accuracy, count(*) AS n FROM arms GROUP BY ALL ORDER BY ALL"
  python -m raylth.results raylth-store/runs/RUN "SELECT * FROM curves JOIN results USING (key)" --csv curves.csv
"""
LOADERS: dict[str, Callable[[Location], pd.DataFrame]] = {
    "results": results.load_results,
    "curves": results.load_curves,
    "permutations": results.load_permutations,
    "barriers": results.load_barriers,
    "lines": results.load_lines,
    "planes": results.load_planes,
    "masks": results.load_masks,
    "ensembles": results.load_ensembles,
    "arms": results.load_arms,
}
TABLES: dict[str, pa.Schema] = {**DATASETS, "arms": DATASETS["results"].append(pa.field("settings", pa.string()))}


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.results",
        description=DESCRIPTION,
        epilog=describe({ExitCode.OK: "", ExitCode.BAD_INPUT: "a store or SQL that cannot be read"}),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("place", metavar="STORE", help="a store, for all its sweeps, or one run, <store>/runs/<run>")
    parser.add_argument("sql", metavar="SQL", nargs="?", help="a query; each kind of result is a table")
    parser.add_argument("--csv", metavar="FILE", help="write all rows as CSV to a file; - is standard output")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 for a store or SQL that cannot be read."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.csv and not options.sql:
        parser.error("--csv needs SQL")
    try:
        place = locate(options.place)
        _check(place)
        if options.sql is None:
            _list(place, Console())
            return ExitCode.OK
        names, rows = _ask(place, options.sql)
        if options.csv is None:
            _show(names, rows, Console())
        elif options.csv == "-":
            _write(names, rows, sys.stdout)
        else:
            with Path(expanded(options.csv)).open("w", newline="", encoding="utf-8") as file:
                _write(names, rows, file)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    return ExitCode.OK


def _check(place: Location) -> None:
    """Raise FileNotFoundError when no sweep has written results there."""
    is_run = place.parent.name == "runs" and (place / "manifest.json").exists()
    root = place.parent.parent if is_run else place
    if not any((root / name).names() for name in DATASETS):
        raise FileNotFoundError(f"{place}: no results here; expected {root}/results/<run>.parquet")


def _load(place: Location, name: str) -> pa.Table:
    """Return a table with the columns that it has in this version; no rows when nothing was written."""
    schema = TABLES[name]
    try:
        frame = LOADERS[name](place)
    except FileNotFoundError:
        return schema.empty_table()
    return pa.Table.from_pandas(frame.reindex(columns=schema.names), schema=schema, preserve_index=False)


def _ask(place: Location, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the columns and rows of a query, which sees the tables that it names and no file.

    Raises ValueError, one line, for SQL that DuckDB refuses, and when DuckDB is not there.
    """
    try:
        import duckdb
    except ModuleNotFoundError:
        raise ValueError("the package duckdb is not installed: pip install 'raylth[sql]'") from None
    with duckdb.connect(":memory:") as connection:
        computed = re.search(r"\bquery(_table)?\s*\(", sql, re.IGNORECASE)  # names that are not there to be read
        for name, schema in TABLES.items():
            is_named = computed or re.search(rf"\b{name}\b", sql, re.IGNORECASE)
            connection.register(name, _load(place, name) if is_named else schema.empty_table())  # SHOW TABLES lists all
        connection.execute("SET enable_external_access = false")  # no file, no network, none of Python's variables
        try:
            found = connection.execute(sql)
            if found is None or found.description is None:
                raise ValueError("the SQL asks nothing")
            return [column[0] for column in found.description], found.fetchall()
        except duckdb.Error as error:
            raise ValueError(" ".join(str(error).partition("\nLINE ")[0].split())) from error


def _list(place: Location, console: Console) -> None:
    table = Table()
    for heading in ("table", "rows", "columns"):
        table.add_column(heading, justify="right" if heading == "rows" else "left", overflow="fold")
    for name, schema in TABLES.items():
        table.add_row(name, f"{len(_load(place, name)):,}", ", ".join(schema.names))
    console.print(table)


def _show(names: list[str], rows: list[tuple[Any, ...]], console: Console) -> None:
    """Print as many rows as one reads, and as many columns as a terminal has room for; say what is left out."""
    cells = [[_cell(value) for value in row] for row in rows[:SHOWN]]
    widths = _widths(names, cells)
    if not console.is_terminal:
        console = Console(width=sum(widths) + 1)
    elif sum(widths) + 1 > console.width:  # keys leave no room for numbers
        cells = [[text if len(text) <= WIDE else f"{text[: WIDE - 1]}…" for text in row] for row in cells]
        widths = _widths(names, cells)
    fitting = len(names)
    while fitting > 1 and sum(widths[:fitting]) + 1 > console.width:
        fitting -= 1
    table = Table()
    for number, name in enumerate(names[:fitting]):
        is_number = all(isinstance(row[number], int | float) or row[number] is None for row in rows[:SHOWN])
        table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row[:fitting]))
    console.print(table)
    if len(rows) > SHOWN:
        console.print(f"and {len(rows) - SHOWN:,} more rows (--csv writes all)", highlight=False, soft_wrap=True)
    if fitting < len(names):
        left_out = ", ".join(names[fitting:])
        console.print(f"and {len(names) - fitting} more columns: {left_out}", highlight=False, markup=False, soft_wrap=True)


def _widths(names: list[str], cells: list[list[str]]) -> list[int]:
    """Return how many characters of a line each column takes."""
    return [max(len(text) for text in column) + 3 for column in zip(names, *cells, strict=True)]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    """Return a value as CSV has it: a missing one is empty, yes and no as in SQL."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _write(names: list[str], rows: list[tuple[Any, ...]], file: IO[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_text(value) for value in row] for row in rows)
