"""Questions to a store's results in SQL: `python -m raylth.results STORE 'SQL'`, through DuckDB."""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylth.common.exit_codes import ExitCode, describe
from raylth.common.importing import uncollected
from raylth.common.paths import expanded
from raylth.store import Location, locate

__all__ = ["main", "make_parser"]

SHOWN = 200  # rows of a table
WIDE = 20  # characters that a text may have where room is short
DESCRIPTION = """\
Query a store's results in SQL (DuckDB); without SQL: list tables and columns.

examples:
  python -m raylth.results raylth-store
  python -m raylth.results raylth-store "SELECT dataset, model, width, settings, arm, sparsity, rewind_epoch,
      match_method, match_epoch, avg(test_accuracy) AS accuracy, count(*) AS n FROM arms GROUP BY ALL ORDER BY ALL"
  python -m raylth.results raylth-store/runs/RUN "SELECT * FROM curves JOIN results USING (key)" --csv curves.csv
"""


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
    with uncollected():
        from raylth.report.sql import ask, check_store
    try:
        place = locate(options.place)
        check_store(place)
        if options.sql is None:
            _list(place, Console())
            return ExitCode.OK
        names, rows = ask(place, options.sql)
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


def _list(place: Location, console: Console) -> None:
    from raylth.report.sql import TABLES, load_table

    table = Table()
    for heading in ("table", "rows", "columns"):
        table.add_column(heading, justify="right" if heading == "rows" else "left", overflow="fold")
    for name, schema in TABLES.items():
        table.add_row(name, f"{len(load_table(place, name)):,}", ", ".join(schema.names))
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
