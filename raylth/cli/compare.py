"""Runs side by side: `python -m raylth.compare RUN RUN...`."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylth.common.exit_codes import ExitCode, describe
from raylth.common.importing import uncollected

__all__ = ["main", "make_parser"]

WIDE = 140  # characters of a line where there is no terminal
DESCRIPTION = """\
Compare runs: accuracies and planned contrasts of the cells that all have, with intervals, and the settings that differ.

examples:
  python -m raylth.compare raylth-store/runs/RUN raylth-store/runs/OTHER
  python -m raylth.compare raylth-store/runs/RUN other-store --html compared.html
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.compare",
        description=DESCRIPTION,
        epilog=describe({ExitCode.OK: "", ExitCode.BAD_INPUT: "a run that is not there, or nothing to compare"}),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "two runs or more, <store>/runs/<run>, or a store with one run; differences are to the first"
    parser.add_argument("runs", metavar="RUN", nargs="+", help=text)
    parser.add_argument("--html", metavar="FILE", help="write the comparison as one page, too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 for runs that cannot be compared."""
    options = make_parser().parse_args(arguments)
    with uncollected():
        from raylth.report.compared import sections_of, write_comparison
        from raylth.report.comparison import compare
    from raylth.store import locate

    try:
        found = compare(options.runs)
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDE)
        for section in sections_of(found):
            if section.is_detail:
                continue
            if section.view is None:
                console.print(f"{section.title}: none", highlight=False)
                continue
            table = Table(title=section.title, caption=section.text, title_justify="left", caption_justify="left")
            for heading, is_number in section.view.columns:
                table.add_column(Text(heading), justify="right" if is_number else "left", overflow="fold")
            for row in section.view.rows:
                table.add_row(*map(Text, row))
            console.print(table)
        if options.html is None:
            console.print("cell by cell: --html FILE, or raylth.results.compare", highlight=False)
        else:
            console.print(f"page: {write_comparison(found, locate(options.html))}", highlight=False, soft_wrap=True)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    return ExitCode.OK
