"""The command line: `python -m raylth.X` and `raylth X` come here."""
