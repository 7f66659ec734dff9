"""The result tables in SQL: `python -m raylth.results STORE SQL`."""

from raylth.common import signals, terminal

if __name__ == "__main__":  # before imports that take seconds
    signals.end_at_once()

from raylth.cli.results import main

__all__ = ["main"]

if __name__ == "__main__":
    terminal.leave(terminal.run(main))
