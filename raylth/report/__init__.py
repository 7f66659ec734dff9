"""Tables and figures from a store's Parquet files. Recomputes nothing."""

from raylth.report.figures import (
    ARM_COLOURS,
    accuracy_vs_rewind,
    accuracy_vs_sparsity,
    difference_plot,
    imp_barriers,
    match_quality,
)
from raylth.report.findings import findings
from raylth.report.page import write_report
from raylth.report.paper import beside_paper, paper_accuracy
from raylth.report.results import (
    load_barriers,
    load_curves,
    load_ensembles,
    load_lines,
    load_masks,
    load_permutations,
    load_planes,
    load_results,
)
from raylth.report.statistics import paired_differences
from raylth.report.tables import accuracy_table, barrier_table, render_barriers, render_table

__all__ = [
    "ARM_COLOURS",
    "accuracy_table",
    "accuracy_vs_rewind",
    "accuracy_vs_sparsity",
    "barrier_table",
    "beside_paper",
    "difference_plot",
    "findings",
    "imp_barriers",
    "load_barriers",
    "load_curves",
    "load_ensembles",
    "load_lines",
    "load_masks",
    "load_permutations",
    "load_planes",
    "load_results",
    "match_quality",
    "paired_differences",
    "paper_accuracy",
    "render_barriers",
    "render_table",
    "write_report",
]
