"""The result tables in SQL: `python -m raylth.results STORE SQL`; in Python, runs side by side and in Tune's own form."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylth.common import signals, terminal
from raylth.common.importing import on_first_use

if __name__ == "__main__":  # before imports that take seconds
    signals.end_at_once()

from raylth.cli.results import main

if TYPE_CHECKING:
    import pandas as pd

    from raylth.cluster.tune_results import result_grid
    from raylth.report.comparison import Comparison
else:
    __getattr__ = on_first_use("raylth.cluster", {"tune_results": ("result_grid",)})

__all__ = ["compare", "live", "main", "result_grid"]


def compare(runs: "Sequence[str | Path]") -> "Comparison":
    """Compare two or more runs, `<store>/runs/<run>`; the result holds pandas tables.

    These are `settings` (those that differ), `accuracy`, `contrasts`, `contrast_cells` and `barriers`, as
    `raylth.report.comparison.Comparison` says. Raises FileNotFoundError for a run that is not there, ValueError for runs
    that have nothing in common.
    """
    from raylth.report.comparison import compare as compared  # pandas takes a second

    return compared(runs)


def live(run: str, *, every: float = 5.0, wait: float = 0.0, figure: "Callable[[pd.DataFrame], Any] | None" = None) -> None:
    """Show a run, or the newest of a store, in a notebook until it has ended; interrupting the cell stops showing it.

    Progress, failures, accuracies so far and `figure(results)` are drawn again every `every` seconds; `wait` is how many
    seconds a run that starts in another process may take to appear. Raises FileNotFoundError where no sweep has run.
    """
    from raylth.driver.notebook import live as shown  # pandas and matplotlib

    shown(run, every=every, wait=wait, figure=figure)


if __name__ == "__main__":
    terminal.leave(terminal.run(main))
