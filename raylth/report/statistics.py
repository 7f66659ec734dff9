"""Differences between arms: by cell and over a whole sweep, paired where two arms of a replicate share their networks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from raylth.arms import arm_of, rank
from raylth.report.estimates import CONFIDENCE, Estimate, apart, fieller, holm
from raylth.report.repeats import ON, PAIR_KEY, crossed_mean, difference_of, pair_keys_agree
from raylth.report.tables import CELL, finished_arms, lost_arms

__all__ = [
    "CONFIDENCE",
    "TwoArms",
    "contrast",
    "contrast_cells",
    "mean_effects",
    "paired_differences",
    "planned",
    "recovered",
    "two_arms",
    "unpaired_differences",
]

CLAIM = ("permuted", "naive")  # the paper's, first of all contrasts
WAY = ("match_method", "match_epoch")  # in which an arm's masks were permuted
FINDER = "mask_finder"  # arms are compared under the masks of one
COLUMNS = [*CELL, "label", "against", "difference", "low", "high", "n", "p", "lost", "design"]


def paired_differences(results: pd.DataFrame, first: str = "permuted", second: str = "naive") -> pd.DataFrame:
    """Return per cell the difference of test accuracy between two arms, percentage points, paired by replicate.

    One row per (width, sparsity, rewind_epoch, `label` of the first arm and of the one `against`) that has both: `difference`
    (mean over pairs), `low` and `high` (95 % confidence interval, Student's t with n - 1 degrees of freedom; missing for one
    pair), `n` pairs, `p` (two-sided, of this cell alone), `lost` (networks of both arms that diverged or failed). After a
    search with repeats the interval counts how those differ, too (`crossed_mean`).
    """
    return _by_cell(two_arms(results, first, second), is_paired=True)


def unpaired_differences(results: pd.DataFrame, first: str = "permuted", second: str = "naive") -> pd.DataFrame:
    """Return what `paired_differences` does, by Welch's comparison of two independent means.

    For arms of one replicate that start from different dense networks; `n` is the number of networks of the smaller arm.
    """
    return _by_cell(two_arms(results, first, second), is_paired=False)


def contrast(results: pd.DataFrame, first: str = "permuted", second: str = "naive") -> pd.DataFrame:
    """Return `paired_differences`, or `unpaired_differences` where two arms of a replicate come from other dense networks.

    The column `pair_key` says so; results without it are paired.
    """
    arms = two_arms(results, first, second)
    return _by_cell(arms, is_paired=arms.is_paired)


def planned(results: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the planned contrasts of the arms that a sweep has: pairs of names, as `raylth.arms.Arm.against` says.

    The paper's claim comes first, then in the order of tables.
    """
    arms = sorted(results["arm"].dropna().unique(), key=lambda name: (rank(name), name))
    pairs = list[tuple[str, str]]()
    for first in arms:
        for second in arm_of(first).against:
            if second in arms and second != first and (second, first) not in pairs:
                pairs.append((first, second))
    return sorted(pairs, key=lambda pair: pair != CLAIM)


def contrast_cells(results: pd.DataFrame) -> pd.DataFrame:
    """Return the planned contrasts cell by cell: `contrast` of each, whose arms the sweep has.

    `p_holm` is corrected by Holm's method for all these tests together; intervals are not corrected.
    """
    parts = [contrast(results, first, second) for first, second in planned(results) or [CLAIM]]
    found = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    found.insert(found.columns.get_loc("p") + 1, "p_holm", holm(found["p"].astype(float)))
    return found


def mean_effects(results: pd.DataFrame) -> pd.DataFrame:
    """Return the planned contrasts over a whole sweep, a row each: the mean effect per replicate, percentage points.

    The difference is averaged over cells within each replicate, then over replicates (Student's t over replicates; Welch's
    where the arms are no pairs): cells of one replicate share networks and are no independent evidence. The cells are those
    in which every replicate has both arms, `cells` of `cells_all`. `p_holm` is corrected for the sweep's contrasts;
    `smallest` is the effect that so many replicates with this spread show with a power of 80 % (two-sided 5 %).
    """
    rows = []
    for first, second in planned(results):
        for part in two_arms(results, first, second).parts():
            shared = part.complete_cells()
            effect, cells, count = part.effect(shared), len(shared), part.num_replicates(shared)
            low, high = effect.interval
            total = len(_differences(part).columns)
            facts = (cells, total, count, effect.p, effect.smallest, len(part.lost), _design(part.is_paired))
            rows.append((part.label, part.against, effect.value, low, high, *facts))
    columns = ["label", "against", "difference", "low", "high", "cells", "cells_all", "n", "p", "smallest", "lost", "design"]
    found = pd.DataFrame(rows, columns=columns)
    found.insert(columns.index("smallest"), "p_holm", holm(found["p"].astype(float)))
    return found


def recovered(results: pd.DataFrame, *, by_cell: bool = False) -> pd.DataFrame:
    """Return which share of the distance from naive to lth a permuted arm makes up for, with its 95 % interval.

    The share is mean(permuted - naive) / mean(lth - naive) over replicates, of all cells together (means over cells within
    each replicate) or cell by cell; the interval is Fieller's. Only where the distance is significantly above 0 (its own
    95 % interval is), where all three arms are paired, and not for a search with repeats.
    """
    above, below = two_arms(results, "permuted", "naive"), two_arms(results, "lth", "naive")
    columns = [*CELL, "label", "share", "low", "high", "n"] if by_cell else ["label", "share", "low", "high", "cells", "n"]
    rows = []
    is_known = above.is_paired and below.is_paired and above.repeats == 1
    for part in above.parts() if is_known else []:
        tables = [_differences(part), _differences(below.under(part.first[FINDER]))]
        shared = tables[0].columns.intersection(tables[1].columns)
        if by_cell:
            for cell in shared:
                both = pd.concat([table[cell] for table in tables], axis=1).dropna().to_numpy(float)
                if (found := fieller(both[:, 0], both[:, 1])) is not None:
                    rows.append((*cell, part.label, *found, len(both)))
            continue
        tables = _complete(tables[0][shared], tables[1][shared])
        if tables[0].size:
            means = [table.mean(axis=1).to_numpy() for table in tables]
            if (found := fieller(means[0], means[1])) is not None:
                rows.append((part.label, *found, len(tables[0].columns), len(tables[0])))
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values([*CELL, "label"], ignore_index=True) if by_cell else found


@dataclass(frozen=True)
class TwoArms:
    """The finished networks of two arms of one run, and those that they lost."""

    first: pd.DataFrame
    second: pd.DataFrame
    lost: pd.DataFrame

    @property
    def label(self) -> str:
        """The first arm's name."""
        return str(self.first["label"].iloc[0])

    @property
    def against(self) -> str:
        """The name of the arm that it is compared with."""
        return str(self.second["label"].iloc[0])

    def parts(self) -> Iterator["TwoArms"]:
        """Yield them by label: an arm that was matched in several ways is compared in each, two such arms within each."""
        for label, first in self.first.groupby("label", observed=True):
            for against, second in self.second.groupby("label", observed=True):
                if not self.pairs(first, second).empty and _may_share_a_way(first, second):
                    yield TwoArms(first, second, self.lost[self.lost["label"].isin([label, against])])

    def under(self, finders: "pd.Series[str]") -> "TwoArms":
        """Return the arms under the masks of these finders; older results name none."""
        first, second = (arm[arm[FINDER].isin(finders.unique())] for arm in (self.first, self.second))
        return TwoArms(first, second, self.lost)

    @staticmethod
    def pairs(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of both arms side by side, by cell, finder, repeat and replicate."""
        return first.merge(second, on=[*CELL, FINDER, *ON], suffixes=("", "_second"))

    @cached_property
    def is_paired(self) -> bool:
        """Whether all of their differences are of pairs."""
        return pair_keys_agree(self.pairs(self.first, self.second))

    @property
    def repeats(self) -> int:
        """Of the search that found their settings."""
        return self.first["repeat"].nunique()

    @cached_property
    def tables(self) -> list[pd.DataFrame]:
        """The differences, or where they are not paired both arms' accuracies: a row per pair, a column per cell."""
        return [_differences(self)] if self.is_paired else [_wide(arm, "test_accuracy") for arm in (self.first, self.second)]

    def complete_cells(self) -> list[tuple[float, ...]]:
        """Return the cells in which every replicate has both arms."""
        tables = self.tables
        shared = tables[0].columns.intersection(tables[-1].columns)
        return [cell for cell in shared if all(table[cell].notna().all() for table in tables)]

    def effect(self, cells: Sequence[tuple[float, ...]]) -> Estimate:
        """Return the mean effect over cells, averaged within each replicate first."""
        means = [crossed_mean(table[list(cells)].mean(axis=1)) for table in self.tables]
        return means[0] if len(means) == 1 else apart(*means)

    def num_replicates(self, cells: Sequence[tuple[float, ...]]) -> int:
        """Return how many replicates an effect is of; of the smaller arm where they are not paired."""
        return min(_num_replicates(table[list(cells)]) for table in self.tables)


def two_arms(results: pd.DataFrame, first: str, second: str) -> TwoArms:
    """Return the networks of two arms, by the arms' names."""
    arms, lost = finished_arms(results), lost_arms(results)
    arms = arms.reindex(columns=[*CELL, "arm", *ON, "label", FINDER, *WAY, "test_accuracy", PAIR_KEY])
    ours, theirs = (arms[arms["arm"] == arm].drop(columns="arm") for arm in (first, second))
    return TwoArms(ours, theirs, lost[lost["arm"].isin([first, second])])


def _may_share_a_way(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether the masks of two arms were permuted in the same way, as far as both were permuted at all."""
    ways = [arm[[*WAY]].dropna(how="all").drop_duplicates() for arm in (first, second)]
    return any(way.empty for way in ways) or not ways[0].merge(ways[1]).empty


def _design(is_paired: bool) -> str:
    return "paired" if is_paired else "unpaired"


def _by_cell(arms: TwoArms, *, is_paired: bool) -> pd.DataFrame:
    rows = []
    for part in arms.parts():
        lost = part.lost.groupby(list(CELL)).size().to_dict()
        ours, theirs = (dict(list(arm.groupby(list(CELL), observed=True))) for arm in (part.first, part.second))
        for cell in ours.keys() & theirs.keys():
            found = difference_of(ours[cell], theirs[cell], is_paired=is_paired)
            if found is None:
                continue
            effect = found.estimate
            facts = (effect.value, *effect.interval, found.pairs, effect.p, lost.get(cell, 0), _design(is_paired))
            rows.append((*cell, part.label, part.against, *facts))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values([*CELL, "label", "against"], ignore_index=True)


def _num_replicates(table: pd.DataFrame) -> int:
    return table.index.get_level_values("replicate").nunique() if table.size else 0


def _differences(arms: TwoArms) -> pd.DataFrame:
    """Return the paired differences: a row per repeat and replicate, a column per cell."""
    pairs = TwoArms.pairs(arms.first, arms.second)
    return _wide(pairs.assign(difference=pairs["test_accuracy"] - pairs["test_accuracy_second"]), "difference")


def _wide(rows: pd.DataFrame, values: str) -> pd.DataFrame:
    return rows.pivot(index=ON, columns=list(CELL), values=values).astype(float)


def _complete(*tables: pd.DataFrame) -> list[pd.DataFrame]:
    """Keep the replicates that all tables have, and the cells that each of those has, over which all are averaged."""
    rows = sorted(set.intersection(*(set(table.index) for table in tables)))
    tables = tuple(table.reindex(rows) for table in tables)
    cells = np.logical_and.reduce([table.notna().all().to_numpy() for table in tables])
    return [table.loc[:, cells] for table in tables]
