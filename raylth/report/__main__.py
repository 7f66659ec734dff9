"""`python -m raylth.report`."""

import sys

from raylth.report.command import main

sys.exit(main())
