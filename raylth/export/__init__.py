"""Trained networks for those who have no raylth: `python -m raylth.export STORE KEY`.

This file imports nothing, so that Ctrl-C is heard while the rest is imported.
"""
