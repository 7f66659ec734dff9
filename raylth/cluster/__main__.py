"""`python -m raylth.cluster`."""

from raylth import terminal
from raylth.cluster.down import main

terminal.leave(main())
