"""Tables and figures from a store's Parquet files. Recomputes nothing.

A name imports its module, and with it pandas or matplotlib, at its first use: `--help` needs neither.
"""

from typing import TYPE_CHECKING

from raylth.common.importing import on_first_use

if TYPE_CHECKING:
    from raylth.report.costs import cost_table
    from raylth.report.estimates import power_table
    from raylth.report.figures import accuracy_vs_rewind, accuracy_vs_sparsity, difference_plot
    from raylth.report.landscape import barrier_vs_width, imp_barriers, line_plot, plane_plot
    from raylth.report.matching import mask_overlap, match_effort, match_quality
    from raylth.report.page import write_report
    from raylth.report.paper import beside_paper, ensembles_beside_paper
    from raylth.report.recipe import recipe_of
    from raylth.report.results import (
        find_run,
        load_barriers,
        load_curves,
        load_ensembles,
        load_lines,
        load_manifest,
        load_masks,
        load_measurements,
        load_permutations,
        load_planes,
        load_results,
    )
    from raylth.report.sentences import findings
    from raylth.report.sources import paper_accuracy, paper_ensembles, paper_recipe
    from raylth.report.statistics import (
        contrast,
        contrast_cells,
        mean_effects,
        paired_differences,
        recovered,
        unpaired_differences,
    )
    from raylth.report.style import ARM_COLOURS
    from raylth.report.tables import (
        accuracy_table,
        barrier_table,
        ensemble_table,
        imp_barrier_table,
        line_table,
        overlap_table,
        render_barriers,
        render_table,
    )
else:
    __getattr__ = on_first_use(
        __name__,
        {
            "costs": ("cost_table",),
            "estimates": ("power_table",),
            "figures": ("accuracy_vs_rewind", "accuracy_vs_sparsity", "difference_plot"),
            "landscape": ("barrier_vs_width", "imp_barriers", "line_plot", "plane_plot"),
            "matching": ("mask_overlap", "match_effort", "match_quality"),
            "page": ("write_report",),
            "paper": ("beside_paper", "ensembles_beside_paper"),
            "recipe": ("recipe_of",),
            "results": (
                "find_run",
                "load_barriers",
                "load_curves",
                "load_ensembles",
                "load_lines",
                "load_manifest",
                "load_masks",
                "load_measurements",
                "load_permutations",
                "load_planes",
                "load_results",
            ),
            "sentences": ("findings",),
            "sources": ("paper_accuracy", "paper_ensembles", "paper_recipe"),
            "statistics": (
                "contrast",
                "contrast_cells",
                "mean_effects",
                "paired_differences",
                "recovered",
                "unpaired_differences",
            ),
            "style": ("ARM_COLOURS",),
            "tables": (
                "accuracy_table",
                "barrier_table",
                "ensemble_table",
                "imp_barrier_table",
                "line_table",
                "overlap_table",
                "render_barriers",
                "render_table",
            ),
        },
    )

__all__ = [
    "ARM_COLOURS",
    "accuracy_table",
    "accuracy_vs_rewind",
    "accuracy_vs_sparsity",
    "barrier_table",
    "barrier_vs_width",
    "beside_paper",
    "contrast",
    "contrast_cells",
    "cost_table",
    "difference_plot",
    "ensemble_table",
    "ensembles_beside_paper",
    "find_run",
    "findings",
    "imp_barrier_table",
    "imp_barriers",
    "line_plot",
    "line_table",
    "load_barriers",
    "load_curves",
    "load_ensembles",
    "load_lines",
    "load_manifest",
    "load_masks",
    "load_measurements",
    "load_permutations",
    "load_planes",
    "load_results",
    "mask_overlap",
    "match_effort",
    "match_quality",
    "mean_effects",
    "overlap_table",
    "paired_differences",
    "paper_accuracy",
    "paper_ensembles",
    "paper_recipe",
    "plane_plot",
    "power_table",
    "recipe_of",
    "recovered",
    "render_barriers",
    "render_table",
    "unpaired_differences",
    "write_report",
]


def __dir__() -> list[str]:
    return __all__
