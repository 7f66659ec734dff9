"""What a report shows, in its order: figures and tables, each with what a reader must know of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from raylth.report.costs import cost_table
from raylth.report.figures import accuracy_vs_rewind, accuracy_vs_sparsity, difference_plot
from raylth.report.landscape import barrier_vs_width, imp_barriers, line_plot, plane_plot
from raylth.report.matching import mask_overlap, match_effort, match_quality
from raylth.report.paper import beside_paper, ensembles_beside_paper
from raylth.report.results import (
    load_barriers,
    load_ensembles,
    load_lines,
    load_masks,
    load_permutations,
    load_planes,
    load_results,
)
from raylth.report.searches import load_search, search_figure, search_table
from raylth.report.statistics import paired_differences
from raylth.report.tables import (
    accuracy_table,
    barrier_table,
    ensemble_table,
    imp_barrier_table,
    line_table,
    overlap_table,
    permutation_table,
)
from raylth.store import Location
from raylth.store.tables import DATASETS

__all__ = ["FIGURES", "TABLES", "Entry", "Frames"]

Make = TypeVar("Make")


@dataclass(frozen=True)
class Frames:
    """All that a run has written, as data frames; what it has nothing of is empty."""

    results: pd.DataFrame
    barriers: pd.DataFrame
    lines: pd.DataFrame
    planes: pd.DataFrame
    permutations: pd.DataFrame
    masks: pd.DataFrame
    ensembles: pd.DataFrame
    search: pd.DataFrame

    @classmethod
    def load(cls, run: Location) -> "Frames":
        """Load a run's datasets; a run of an older version may lack some, but not its results."""
        loaders = {
            "barriers": load_barriers, "lines": load_lines, "planes": load_planes, "permutations": load_permutations,
            "masks": load_masks, "ensembles": load_ensembles,
        }  # fmt: skip
        found = {}
        for name, load in loaders.items():
            try:
                found[name] = load(run)
            except FileNotFoundError:
                found[name] = pd.DataFrame()
            found[name] = found[name].reindex(columns=DATASETS[name].names)
        return cls(load_results(run), **found, search=load_search(run))


@dataclass(frozen=True)
class Entry(Generic[Make]):
    """One figure or table of the page."""

    name: str  # of its files
    title: str
    text: str  # what a reader must know of it
    make: Make
    has_place: Callable[[Frames], bool] = lambda frames: True  # whether a page of these shows it at all


FIGURES: tuple[Entry[Callable[[Frames, str], Figure]], ...] = (
    Entry(
        "accuracy_vs_rewind",
        "Accuracy against the rewind point",
        "Paper, Figures 5, 6 and 8. Dashed: the dense networks' mean.",
        lambda frames, title: accuracy_vs_rewind(frames.results, title),
    ),
    Entry(
        "difference",
        "What the permutation gains",
        "Permuted minus naive, paired: both arms of a replicate start from the same weights and see the same batches.",
        lambda frames, title: difference_plot(frames.results, title),
    ),
    Entry(
        "search",
        "The search",
        "Trials that went to their end, judged on held-out training samples; lines: the best so far, or the Pareto front.",
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
        "lines",
        "Lines between networks",
        "Paper, Figure 3 (right): test error on the way from one network to the other; bands: range over replicates.",
        lambda frames, title: line_plot(frames.lines, title),
    ),
    Entry(
        "barrier_vs_width",
        "Barrier against width",
        "Paper, Figure 3 (left): between pi(A) and B, test split, for the permutations that carry masks.",
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
        "From dense A to its pruned selves",
        "Paper, Figure 4a: the barrier on the line from dense A to every round of IMP, test split.",
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

TABLES: tuple[Entry[Callable[[Frames], pd.DataFrame]], ...] = (
    Entry(
        "accuracy",
        "Accuracy",
        "Test accuracy in percent: mean and standard deviation over n replicates.",
        lambda frames: accuracy_table(frames.results),
    ),
    Entry(
        "difference",
        "Permuted against naive",
        "Difference in percentage points, paired by replicate, with its 95 % confidence interval (Student's t).",
        lambda frames: paired_differences(frames.results),
    ),
    Entry(
        "costs",
        "What each arm costs",
        "Epochs that one network of the arm needs from nothing, beside its mean test accuracy (%): dense A and IMP for the "
        "mask, B as far as it is read, the match in passes over the training split (a forward pass is a third of one), and "
        "its own training. A sweep trains what arms share once.",
        lambda frames: cost_table(frames.results),
    ),
    Entry(
        "search",
        "Best settings",
        "What the search found best, with its accuracy on the held-out training samples; the trials of each study, how many "
        "were stopped early, and the epochs that all of them trained. edges: settings at an end of their range.",
        lambda frames: search_table(frames.search),
        lambda frames: not frames.search.empty,
    ),
    Entry(
        "paper",
        "Beside the paper",
        "Cells that the paper has, too; difference: ours minus the paper's.",
        lambda frames: beside_paper(frames.results),
    ),
    Entry(
        "barriers",
        "Barriers from pi(A) to B",
        "The most that the test error (points) and loss (nats) on the line rise above the chord between its ends.",
        lambda frames: barrier_table(frames.barriers),
    ),
    Entry(
        "lines",
        "Barriers of the other lines",
        "As above, between the networks that the sweep names.",
        lambda frames: line_table(frames.barriers),
    ),
    Entry(
        "imp_barriers",
        "Barriers from dense A to the rounds of IMP",
        "As above, without a permutation: both are in one basin when the barrier is low.",
        lambda frames: imp_barrier_table(frames.barriers),
    ),
    Entry(
        "ensembles",
        "Ensembles",
        "Paper, Table 1. Members alone (mean) and together, on the test split. Disagreement: share of samples on which "
        "two members predict differently; KL and JS in nats: means over pairs and samples, KL in both directions.",
        lambda frames: ensemble_table(frames.ensembles),
    ),
    Entry(
        "paper_ensembles",
        "Ensembles beside the paper",
        "Where the paper's Table 1 has the set: its values, and ours minus the paper's.",
        lambda frames: ensembles_beside_paper(frames.ensembles, frames.results),
    ),
    Entry(
        "masks",
        "Masks",
        "Overlap (Jaccard) of two masks, means over replicates, and what masks of these densities share by chance; all: "
        "the whole network. Density and pruned units (outputs that no weight is left for): of the first mask.",
        lambda frames: overlap_table(frames.masks),
    ),
    Entry(
        "permutations",
        "Permutations",
        "Mean correlation of the matched units, and the share of units that stay where they are.",
        lambda frames: permutation_table(frames.permutations),
    ),
)
