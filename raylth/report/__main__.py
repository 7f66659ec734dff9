"""`python -m raylth.report`."""

from raylth.common import terminal
from raylth.report.command import main

terminal.leave(main())
