"""The result tables in SQL: `python -m raylth.results STORE SQL`."""

from raylth.cli.results import main
from raylth.common import terminal

__all__ = ["main"]

if __name__ == "__main__":
    terminal.leave(terminal.run(main))
