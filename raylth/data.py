"""Data sets in the form that sweeps read: `python -m raylth.data imagenet SRC DST`."""

from raylth.common import signals, terminal

if __name__ == "__main__":  # before imports that take seconds
    signals.end_at_once()

from raylth.cli.data import main

__all__ = ["main"]

if __name__ == "__main__":
    terminal.leave(terminal.run(main))
