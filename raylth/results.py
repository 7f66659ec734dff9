"""The result tables in SQL: `python -m raylth.results STORE SQL`; in Python, runs side by side and in Tune's own form."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylth.common import signals, terminal
from raylth.common.importing import on_first_use

if __name__ == "__main__":  # before imports that take seconds
    signals.end_at_once()

from raylth.cli.results import main

if TYPE_CHECKING:
    from raylth.cluster.tune_results import result_grid
    from raylth.report.comparison import Comparison
else:
    __getattr__ = on_first_use("raylth.cluster", {"tune_results": ("result_grid",)})

__all__ = ["compare", "main", "result_grid"]


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
