"""`python -m raylth.store`: the command is `raylth.cli.store`, above this package, which imports nothing of it."""

import importlib

from raylth.common import terminal

terminal.leave(terminal.run(lambda: importlib.import_module("raylth.cli.store").main()))
