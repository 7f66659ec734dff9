"""`python -m raylth.report`."""

from raylth.common import signals, terminal
from raylth.report.command import main

signals.end_at_once()  # before imports that take seconds

terminal.leave(main())
