"""`python -m raylth.export`."""

from raylth import terminal

if __name__ == "__main__":  # now: what follows takes seconds to import
    terminal.end_at_ctrl_c()

from raylth.export.command import main

terminal.leave(terminal.run(main))
