"""`python -m raylth.export`."""

from raylth.common import signals, terminal

if __name__ == "__main__":  # now: what follows takes seconds to import
    signals.end_at_once()

from raylth.export.command import main

terminal.leave(terminal.run(main))
