"""`python -m raylth.report`."""

from raylth import terminal
from raylth.report.command import main

terminal.leave(main())
