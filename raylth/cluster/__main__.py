"""`python -m raylth.cluster`."""

from raylth.cluster.nodes.down import main
from raylth.common import terminal

terminal.leave(main())
