"""What a report shows, in its order: figures and tables, each with what a reader must know of it."""

import pandas as pd

from raylth.report.compact import compact_barriers, compact_contrasts, compact_ensembles, compact_shares, with_units
from raylth.report.costs import cost_table
from raylth.report.curves import learning_curves
from raylth.report.entry import Entry, FigureEntry, TableEntry
from raylth.report.figures import accuracy_vs_rewind, accuracy_vs_sparsity, difference_plot
from raylth.report.landscape import barrier_vs_width, imp_barriers, line_plot, plane_plot
from raylth.report.lost import NETWORKS, UPSTREAM
from raylth.report.matching import mask_overlap, match_effort, match_quality
from raylth.report.paper import beside_paper, ensembles_beside_paper
from raylth.report.searches import search_figure, search_table
from raylth.report.statistics import contrast_cells, mean_effects, recovered
from raylth.report.tables import (
    accuracy_table,
    barrier_table,
    ensemble_table,
    imp_barrier_table,
    line_table,
    overlap_table,
    permutation_table,
    wide_accuracy,
)

__all__ = ["FIGURES", "TABLES"]

FIGURES: tuple[FigureEntry, ...] = (
    Entry(
        "accuracy_vs_rewind",
        "Accuracy against the rewind point",
        "Paper, Figures 5, 6 and 8. Dashed: the dense networks' mean.",
        lambda frames, title: accuracy_vs_rewind(frames.results, title),
    ),
    Entry(
        "difference",
        "What the permutation gains",
        "Permuted minus naive: both arms of a replicate start from the same weights and see the same batches, unless it says "
        "unpaired; bars: 95 % interval of the cell alone, not corrected for their number.",
        lambda frames, title: difference_plot(frames.results, title),
    ),
    Entry(
        "search",
        "The search",
        "Completed trials, evaluated on held-out training samples; lines: the best so far, or the Pareto front.",
        lambda frames, title: search_figure(frames.search, title),
        lambda frames: not frames.search.empty,
    ),
    Entry(
        "accuracy_vs_sparsity",
        "Accuracy against sparsity",
        "Paper, Figures 9 and 10.",
        lambda frames, title: accuracy_vs_sparsity(frames.results, title),
    ),
    Entry(
        "learning_curves",
        "Learning curves",
        "By epoch of each network's own training: dense, and the arms at the latest rewind point of the largest width; the "
        "highest sparsities. Test accuracy, where log.evaluate_every measured it on the way.",
        lambda frames, title: learning_curves(frames.results, frames.curves, title),
    ),
    Entry(
        "lines",
        "Lines between networks",
        "Paper, Figure 3 (right): test error on the way from one network to the other; bands: range over replicates.",
        lambda frames, title: line_plot(frames.lines, title),
    ),
    Entry(
        "barrier_vs_width",
        "Barrier against width",
        "Paper, Figure 3 (left): between pi(A) and B, test split, for the permutations that carry masks; bars: 95 % interval "
        "over replicates. Barriers are maxima, which noise raises.",
        lambda frames, title: barrier_vs_width(frames.barriers, title),
    ),
    Entry(
        "planes",
        "The plane through three networks",
        "Paper, Figure 4b: test error of the first replicate; axes are distances of weights.",
        lambda frames, title: plane_plot(frames.planes, title),
    ),
    Entry(
        "imp_barriers",
        "From dense A to its pruned networks",
        "Paper, Figure 4a: the barrier on the line from dense A to every round of IMP, test split; bars: 95 % interval over "
        "replicates. Barriers are maxima, which noise raises.",
        lambda frames, title: imp_barriers(frames.barriers, title),
    ),
    Entry(
        "match_quality",
        "How well the units match",
        "Mean correlation of the matched units of A and B, by symmetry group (cosine where matched by weights).",
        lambda frames, title: match_quality(frames.permutations, title),
    ),
    Entry(
        "match_effort",
        "What a match is made from",
        "Paper, Table 15 (early matching): correlation, and the barrier that is left, test split. On few samples any "
        "match looks better correlated than it is.",
        lambda frames, title: match_effort(frames.permutations, frames.barriers, title),
    ),
    Entry(
        "masks",
        "What the masks keep and share",
        "By layer, at the smallest width and the highest sparsities; dashed: the overlap that masks of these densities "
        "have by chance.",
        lambda frames, title: mask_overlap(frames.masks, title),
    ),
)

MAXIMA = "Mean and 95 % interval over replicates; a maximum, so biased upwards, with the signed middle beside it."
BIASED = (
    "Mean over replicates and its 95 % interval (Student's t). A barrier is the maximum over a line's points, clipped at 0: "
    "noise can only raise it, so it is biased upwards, and above 0 it is no evidence by itself. The signed height of the "
    "line's middle over the chord, beside it, has no such bias."
)

AT_TEMPERATURES = (
    "At fitted temperatures: each point's logits are divided by the temperature of the smallest loss, fitted on one half "
    "of the split for the other. What this takes from the loss barrier, or adds to it, is miscalibration of the points "
    "between or of the ends; the error is the same."
)


def _scaled(table: pd.DataFrame) -> list[str]:
    """Return what must be known of the columns at fitted temperatures, where a table of barriers has them."""
    return [AT_TEMPERATURES] if "scaled_loss_barrier" in table else []


TABLES: tuple[TableEntry, ...] = (
    Entry(
        "accuracy",
        "Accuracy",
        "Test accuracy in percent: mean and standard deviation over n replicates; * where a network was lost.",
        lambda frames: accuracy_table(frames.results),
        shown=lambda frames, table: with_units(wide_accuracy(frames.results)),
        lacks=NETWORKS,
        nothing="no sparse network has finished",
    ),
    Entry(
        "effects",
        "The planned contrasts",
        "Difference of test accuracy in percentage points: averaged over cells within each replicate, then over replicates, "
        "with its 95 % interval (Student's t). Holm-corrected: for all contrasts; smallest detectable: the effect "
        "that so many replicates with this spread show with a power of 80 % (two-sided 5 %); unpaired: Welch's comparison.",
        lambda frames: mean_effects(frames.results),
        shown=lambda frames, table: compact_contrasts(table),
        lacks=NETWORKS,
        nothing="no two arms of a planned contrast have finished",
    ),
    Entry(
        "difference",
        "The planned contrasts, cell by cell",
        "Difference in percentage points, paired by replicate (unpaired: Welch), with its 95 % confidence interval "
        "(Student's t), which is of the cell alone; Holm-corrected: for all cells of all contrasts.",
        lambda frames: contrast_cells(frames.results),
        shown=lambda frames, table: compact_contrasts(table),
        lacks=NETWORKS,
        nothing="no two arms of a planned contrast have finished",
    ),
    Entry(
        "recovered",
        "What the permutation makes up for",
        "Share of the distance from naive to lth, and Fieller's 95 % interval over replicates; cells whose distance is not "
        "significantly above 0 have none.",
        lambda frames: recovered(frames.results, by_cell=True),
        shown=lambda frames, table: compact_shares(table),
        lacks=NETWORKS,
        nothing="no cell's distance is significantly above 0",
    ),
    Entry(
        "costs",
        "What each arm costs",
        "Epochs that one network of the arm needs from nothing, beside its mean test accuracy (%): dense A and IMP for the "
        "mask, B as far as it is read, the match in passes over the training split (a forward pass is a third of one), and "
        "its own training. A sweep trains what arms share once.",
        lambda frames: cost_table(frames.results),
        nothing="no finished sparse network whose epochs were counted",
    ),
    Entry(
        "search",
        "Best settings",
        "What the search found best, with its accuracy on the held-out training samples; the trials of each study, how many "
        "were stopped early, and the epochs that all of them trained.",
        lambda frames: search_table(frames.search),
        lambda frames: not frames.search.empty,
    ),
    Entry(
        "paper",
        "Beside the paper",
        "Cells that the paper has, too; difference: ours minus the paper's. What differs all the same:",
        lambda frames: beside_paper(frames.results, frames.manifest, searched=not frames.search.empty),
        lambda frames: frames.recipe.is_the_papers,
        notes=lambda frames: frames.recipe.lines,
        lacks=NETWORKS,
        nothing="the paper has none of these cells",
    ),
    Entry(
        "recipe",
        "Not set beside the paper",
        "What differs from the paper's recipe, first what moves accuracy: these numbers neither reproduce the paper's nor "
        "contradict them.",
        lambda frames: pd.DataFrame(),
        lambda frames: not frames.recipe.is_the_papers,
        notes=lambda frames: frames.recipe.lines,
        nothing="",
    ),
    Entry(
        "barriers",
        "Barriers from pi(A) to B",
        f"The most that the test error (points) and loss (nats) on the line rise above the chord between its ends. {BIASED}",
        lambda frames: barrier_table(frames.barriers),
        shown=lambda frames, table: compact_barriers(table),
        notes=lambda frames: _scaled(barrier_table(frames.barriers)),
        lacks=("dense",),
        nothing="no line from pi(A) to B was measured (connect asks for them)",
    ),
    Entry(
        "lines",
        "Barriers of the other lines",
        f"As above, between the networks that the sweep names. {MAXIMA}",
        lambda frames: line_table(frames.barriers),
        shown=lambda frames, table: compact_barriers(table),
        notes=lambda frames: _scaled(line_table(frames.barriers)),
        lacks=NETWORKS,
        nothing="no such line was measured (analyses.lines asks for them)",
    ),
    Entry(
        "imp_barriers",
        "Barriers from dense A to the rounds of IMP",
        f"As above, without a permutation: both are in one basin when the barrier is low. {MAXIMA}",
        lambda frames: imp_barrier_table(frames.barriers),
        shown=lambda frames, table: compact_barriers(table),
        notes=lambda frames: _scaled(imp_barrier_table(frames.barriers)),
        lacks=("dense", "imp"),
        nothing="no such line was measured (analyses.imp_line asks for them)",
    ),
    Entry(
        "ensembles",
        "Ensembles",
        "Paper, Table 1. Members alone (mean) and together, on the test split, gain: the difference in points. Disagreement: "
        "share of samples on which two members predict differently; KL and JS in nats: means over pairs and samples, KL in "
        "both directions. Where there are several sets of a kind: mean and 95 % interval over them (Student's t; sets that "
        "share networks are not independent); one set has no interval.",
        lambda frames: ensemble_table(frames.ensembles),
        shown=lambda frames, table: compact_ensembles(table),
        lacks=NETWORKS,
        nothing="analyses.ensemble asks for them",
    ),
    Entry(
        "paper_ensembles",
        "Ensembles beside the paper",
        "Where the paper's Table 1 has the set: its values, and ours minus the paper's. Its JS is on another scale than ours "
        "and has no difference: for ours KL is at least 4 times JS, in all its rows 2.7 to 3.5 times. The paper does not say "
        "in which unit its KL is; the difference takes it as ours.",
        lambda frames: ensembles_beside_paper(
            frames.ensembles, frames.results, frames.manifest, searched=not frames.search.empty
        ),
        lambda frames: frames.recipe.is_the_papers and not frames.ensembles.empty,
        lacks=NETWORKS,
        nothing="the paper has none of these sets",
    ),
    Entry(
        "masks",
        "Masks",
        "Overlap (Jaccard) of two masks, means over replicates, and what masks of these densities share by chance; all: "
        "the whole network. Density and pruned units (outputs that no weight is left for): of the first mask.",
        lambda frames: overlap_table(frames.masks),
        lacks=UPSTREAM,
        nothing="analyses.overlap asks for them",
    ),
    Entry(
        "permutations",
        "Permutations",
        "Mean correlation of the matched units, and the share of units that stay where they are.",
        lambda frames: permutation_table(frames.permutations),
        lacks=("dense",),
        nothing="nothing was matched, or no unit can be permuted",
    ),
)
