"""The result tables in SQL: `python -m raylth.results STORE SQL`; and in Tune's own form: `result_grid`."""

from typing import TYPE_CHECKING

from raylth.common import signals, terminal
from raylth.common.importing import on_first_use

if __name__ == "__main__":  # before imports that take seconds
    signals.end_at_once()

from raylth.cli.results import main

if TYPE_CHECKING:
    from raylth.cluster.tune_results import result_grid
else:
    __getattr__ = on_first_use("raylth.cluster", {"tune_results": ("result_grid",)})

__all__ = ["main", "result_grid"]

if __name__ == "__main__":
    terminal.leave(terminal.run(main))
