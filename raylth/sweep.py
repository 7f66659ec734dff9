"""The command line of a sweep: `python -m raylth.sweep FILE [key.path=value ...]`."""

from raylth.common import signals, terminal

if __name__ == "__main__":  # before imports that take seconds
    signals.end_at_once()

from raylth.cli.sweep import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    terminal.leave(terminal.run(main))
