"""The command line: entry points of `python -m raylth.X` and `raylth X`."""
