"""The numerics: torch, numpy and scipy only. No ray, no globals, and no files but the data sets that `core.data` reads."""
