"""Progress of the sweeps of a store: `python -m raylth.status STORE`."""

from raylth.cli.status import main
from raylth.common import terminal

__all__ = ["main"]

if __name__ == "__main__":
    terminal.leave(main())
