"""The result tables in SQL: `python -m raylth.results STORE SQL`."""

from raylth.cli.results import main
from raylth.common import signals, terminal

__all__ = ["main"]

if __name__ == "__main__":
    signals.end_at_once()  # before imports that take seconds
    terminal.leave(terminal.run(main))
