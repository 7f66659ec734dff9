"""`python -m raylth.serve`."""

from raylth.common import signals, terminal
from raylth.serve.command import main

signals.end_at_once()  # before imports that take seconds

terminal.leave(terminal.run(main))
