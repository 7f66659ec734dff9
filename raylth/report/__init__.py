"""Tables and figures from a store's Parquet files. Recomputes nothing."""

from raylth.report.figures import ARM_COLOURS, accuracy_vs_rewind
from raylth.report.results import load_barriers, load_curves, load_permutations, load_results
from raylth.report.tables import accuracy_table, render_barriers, render_table

__all__ = [
    "ARM_COLOURS",
    "accuracy_table",
    "accuracy_vs_rewind",
    "load_barriers",
    "load_curves",
    "load_permutations",
    "load_results",
    "render_barriers",
    "render_table",
]
