"""The result tables in SQL: `python -m raylth.results STORE SQL`; and, in Python, runs side by side: `compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylth.common import signals, terminal

if TYPE_CHECKING:
    from raylth.report.comparison import Comparison

if __name__ == "__main__":  # before imports that take seconds
    signals.end_at_once()

from raylth.cli.results import main

__all__ = ["compare", "main"]


def compare(runs: "Sequence[str | Path]") -> "Comparison":
    """Compare two or more runs, `<store>/runs/<run>`; the result holds pandas tables.

    These are `settings` (those that differ), `accuracy`, `contrasts`, `contrast_cells` and `barriers`, as
    `raylth.report.comparison.Comparison` says. Raises FileNotFoundError for a run that is not there, ValueError for runs
    that have nothing in common.
    """
    from raylth.report.comparison import compare as compared  # pandas takes a second

    return compared(runs)


if __name__ == "__main__":
    terminal.leave(terminal.run(main))
