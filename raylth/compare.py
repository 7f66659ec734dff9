"""Runs side by side: `python -m raylth.compare RUN RUN...`."""

from raylth.common import signals, terminal

if __name__ == "__main__":  # before imports that take seconds
    signals.end_at_once()

from raylth.cli.compare import main

__all__ = ["main"]

if __name__ == "__main__":
    terminal.leave(terminal.run(main))
