"""The accuracy table: mean and standard deviation over replicates, by sparsity, rewind point and arm."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from raylth.arms import rank
from raylth.report.display import decimals
from raylth.report.estimates import mean_of
from raylth.report.labels import arm_labels
from raylth.report.lost import lost_networks, lost_note

__all__ = [
    "CELL",
    "accuracy_table",
    "alike",
    "barrier_means",
    "barrier_table",
    "dense_networks",
    "ensemble_table",
    "finished_arms",
    "imp_barrier_table",
    "line_table",
    "lost_arms",
    "matched_lines",
    "overlap_table",
    "own_matches",
    "permutation_table",
    "render_barriers",
    "render_table",
    "wide_accuracy",
    "with_interval_text",
]

CELL = ("width", "sparsity", "rewind_epoch")
SHORT = {"sparsity": "S", "rewind k": "k"}  # headings where there is little room, as in the paper
MATCH = ["width", "match_method", "match_epoch", "match_samples", "sparsity", "mask_finder"]
DIFFERENT = "differ in a setting"


def accuracy_table(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, sparsity, rewind_epoch, arm): `mean`, `std` (n - 1) of test accuracy in percent, and `n`.

    An arm matched at several epochs of B has one row each, distinguished by `label`. Only finished networks count; `lost`
    is the number of those that diverged or failed, and where all did, `mean` is missing. Raises ValueError when runs that
    differ in another setting meet in one row: a replicate has one network there.
    """
    row = [*CELL, "arm", "label"]
    groups = finished_arms(results).groupby(row, observed=True)["test_accuracy"]
    finished = groups.agg(mean="mean", std="std", n="count").reset_index()
    lost = lost_arms(results).groupby(row, observed=True)["key"].nunique().rename("lost").reset_index()
    cells = finished.merge(lost, on=row, how="outer")
    return cells.fillna({"n": 0, "lost": 0}).astype({"n": int, "lost": int})


def finished_arms(results: pd.DataFrame) -> pd.DataFrame:
    """Return the sparse networks that finished, each once, with their `label`; ValueError as `accuracy_table` says.

    `repeat` counts the repeats of a search from 1 (1 where there was none): a network that several found has a row for each.
    """
    arms = _arms(results)
    arms = arms[arms["status"] == "done"]
    repeats = arms["repeats"].fillna("1").str.split(",") if "repeats" in arms else 1
    arms = arms.assign(repeat=repeats).explode("repeat", ignore_index=True).astype({"repeat": int})
    return _once(arms, [*CELL, "arm", "label"], ["replicate", "repeat"])


def lost_arms(results: pd.DataFrame) -> pd.DataFrame:
    """Return the sparse networks that diverged or failed, each once, with their `label`."""
    return lost_networks(_arms(results))


def _arms(results: pd.DataFrame) -> pd.DataFrame:
    """Return all sparse networks of the sweep's cells that have ended, with their label."""
    arms = results[results["stage"] == "sparse"].copy()
    if "member" in arms:
        arms = arms[arms["member"].isna()]  # the others are there for an ensemble alone
    arms["label"] = arm_labels(arms)
    return arms


def dense_networks(results: pd.DataFrame) -> pd.DataFrame:
    """Return the dense networks that finished, each once; ValueError when runs give one width different ones.

    One run has different ones where a search found other settings of theirs for each arm.
    """
    dense = results[(results["stage"] == "dense") & (results["status"] == "done")]
    return _once(dense, ["stage", "width"], ["replicate", "network"], alike_in_a_run=False)


def _once(networks: pd.DataFrame, cell: list[str], member: list[str], *, alike_in_a_run: bool = True) -> pd.DataFrame:
    """Drop what sweeps share; ValueError when a cell then has a member twice, or members of two data sets or models."""
    networks = alike(networks, cell).drop_duplicates(list(dict.fromkeys(["key", *cell, *member])))
    clash = networks.duplicated([*cell, *member], keep=False)
    if clash.any() and not alike_in_a_run:
        clash &= networks.groupby([*cell, *member], observed=True, dropna=False)["run"].transform("nunique") > 1
    if clash.any():
        raise _unlike(networks, clash, cell, DIFFERENT)
    return networks


def alike(rows: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """Return rows that are to be averaged by cell: every average passes here.

    Raises ValueError where a cell has rows of several data sets or models, or of data that changed in between.
    """
    rows = rows.reindex(columns=[*dict.fromkeys([*rows.columns, *cell])])  # older runs lack columns that came later
    for column, how in (("dataset", DIFFERENT), ("model", DIFFERENT), ("data_sha256", "were made from different data")):
        if column in rows:
            mixed = rows.groupby(cell, observed=True, dropna=False)[column].transform("nunique") > 1
            if mixed.any():
                raise _unlike(rows, mixed, cell, how)
    return rows


def _unlike(rows: pd.DataFrame, mixed: "pd.Series[bool]", cell: list[str], how: str) -> ValueError:
    first = rows[mixed].iloc[0]
    same = rows[mixed]
    for name in cell:
        same = same[same[name].isna() if pd.isna(first[name]) else same[name] == first[name]]
    shown = [name for name in cell if name != "arm" and not pd.isna(first[name])]  # the label begins with it
    where = ", ".join(f"{name} {first[name]}" for name in shown)
    runs = sorted(set(same["run"]))
    if len(runs) < 2:
        return ValueError(f"{where}: networks of {runs[0]} {how}: train it anew in another storage")
    return ValueError(
        f"{where}: {' and '.join(runs)} {how}, so their networks are no replicates of each other: "
        'read one of them, load_results("<store>/runs/<run>")'
    )


def wide_accuracy(results: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy table as text: a row per width, sparsity and rewind point, a column per arm; *: one was lost."""
    cells = accuracy_table(results)
    pairs = set(zip(cells["arm"], cells["label"], strict=True))
    labels = [label for arm, label in sorted(pairs, key=lambda pair: (rank(pair[0]), pair[1]))]
    values = {(row.width, row.sparsity, row.rewind_epoch, row.label): _arm_text(row) for row in cells.itertuples()}
    digits = {"width": decimals(cells["width"], most=6), "sparsity": decimals(cells["sparsity"], 2, 6)}
    rows = [
        {
            "width": f"{width:.{digits['width']}f}",
            "sparsity": f"{sparsity:.{digits['sparsity']}f}",
            "rewind k": str(rewind),
            **{label: values.get((width, sparsity, rewind, label), "-") for label in labels},
        }
        for width, sparsity, rewind in sorted({key[:3] for key in values})
    ]
    return pd.DataFrame(rows, columns=["width", "sparsity", "rewind k", *labels])


def render_table(results: pd.DataFrame, title: str, *, max_width: int = 80) -> Table:
    """Lay the accuracy table out for a terminal of `max_width` columns: a row per width, sparsity and rewind point and a
    column per arm. With more arms than fit, names are broken and the headings are the paper's S and k; then a row per arm."""
    cells = wide_accuracy(results)
    if cells["width"].nunique() < 2:
        cells = cells.drop(columns="width")
    labels = list(cells.columns[cells.columns.get_loc("rewind k") + 1 :])
    headings = [name for name in cells if name not in labels]

    def taken(heads: Sequence[str], names: Sequence[str]) -> int:
        """Return the columns of the terminal that a row per cell takes, where names may have several lines."""
        texts = zip(names, labels, strict=True)
        arms = (max(10, *map(len, name.split("\n")), *cells[label].map(len)) + 3 for name, label in texts)
        return sum(arms) + sum(max(len(head), 4 if head == "S" else 2) + 3 for head in heads) + 1

    shown, names = list(headings), list(labels)
    if taken(shown, names) > max_width:
        shown, names = [SHORT.get(head, head) for head in shown], [label.replace("_", "_\n") for label in labels]
    is_wide = taken(shown, names) <= max_width
    table = Table(title=title, caption=_dense_caption(results), title_justify="left", caption_justify="left")
    for heading in shown + names if is_wide else [*headings, "arm", "accuracy"]:
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    previous = None
    for row in cells.to_dict("records"):
        cell = [row[name] for name in headings]
        section = cell[:-1] if is_wide else cell
        if previous is not None and previous != section:
            table.add_section()
        previous = section
        texts = [row[label] for label in labels]
        for line in [texts] if is_wide else [list(pair) for pair in zip(labels, texts, strict=True)]:
            table.add_row(*cell, *line)
            cell = [""] * len(cell)
    return table


def matched_lines(barriers: pd.DataFrame) -> pd.DataFrame:
    """Return the lines from pi(A) to the trained B, of the permutations that carry masks, each once."""
    found = barriers[barriers["carries_masks"].fillna(False).astype(bool) & (barriers["between"] == "pi(A) - B")]
    return alike(found, [*MATCH, "correction", "split"]).drop_duplicates(["key", "correction", "split"])


def own_matches(permutations: pd.DataFrame) -> pd.DataFrame:
    """Return the matches of each replicate's A to its own B, each once: those of an ensemble cross replicates."""
    own = permutations[permutations["member"].isna()]
    return alike(own, [*MATCH, "carries_masks", "unit_group"]).drop_duplicates(["key", "unit_group"])


def permutation_table(permutations: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, match method, epoch and samples, group): mean correlation, share left in place, and n."""
    cell = [*MATCH, "unit_group"]
    groups = own_matches(permutations).groupby(cell, observed=True, sort=False, dropna=False)
    return groups.agg(
        correlation=("correlation", "mean"), fixed_share=("fixed_share", "mean"), n=("key", "nunique")
    ).reset_index()


def barrier_table(barriers: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, match method, epoch and samples, correction, split) of the lines from pi(A) to B, and n.

    Each of `error_barrier` (points), `error_mid` (the signed height of the middle over the chord), `loss_barrier`, `loss_mid`
    (nats) and, where asked for, `scaled_loss_barrier`, `scaled_loss_mid` is a mean over replicates, with its 95 % confidence
    interval in `_low` and `_high`: Student's t (the bootstrap's of n = 3 is far too short), cut at 0 for barriers. A barrier
    is a maximum, clipped at 0: noise raises it, not the middle. Where masks provide their network, a row is of one sparsity.
    """
    cell = [*MATCH, "correction", "split"]
    return barrier_means(matched_lines(barriers), cell)


def line_table(barriers: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (ends, width, sparsity, rewind point, correction, split) of the other lines, as `barrier_table`."""
    others = barriers[barriers["carries_masks"].isna() & barriers["imp_round"].isna()]
    return barrier_means(others, ["between", "width", "sparsity", "rewind_epoch", "correction", "split"])


def overlap_table(masks: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, sparsity, layer, two masks): overlap, by chance, density and pruned units of the first."""
    if masks.empty:
        return masks
    cell = ["width", "sparsity", "layer", "mask"]
    masks = alike(masks, [*cell, "other"]).drop_duplicates(["key", "mask", "other", "layer"])
    density = masks[masks["other"].isna()].groupby(cell, sort=False)[["density", "pruned_units"]].mean()
    pairs = masks[masks["other"].notna()].groupby([*cell, "other"], sort=False)
    shared = pairs.agg(jaccard=("jaccard", "mean"), expected_jaccard=("expected_jaccard", "mean"), n=("key", "nunique"))
    return shared.reset_index().merge(density.reset_index(), on=cell)


def render_barriers(barriers: pd.DataFrame) -> Table:
    """Lay the test error barriers from pi(A) to B out for a terminal: a row per permutation, a column per correction."""
    table = Table(
        title="error barrier between pi(A) and B on the test split, percentage points",
        caption="mean and 95 % interval over replicates; barriers are maxima, so noise raises them",
        title_justify="left",
        caption_justify="left",
    )
    test = matched_lines(barriers)
    test = test[test["split"] == "test"]
    corrections = [name for name in ("plain", "reset", "repair") if (test["correction"] == name).any()]
    for heading in ("width", "matched by", "epoch", *corrections):
        table.add_column(heading, justify="right")
    for (width, method, epoch, finder), rows in test.groupby([*MATCH[:3], "mask_finder"], sort=False, dropna=False):
        means = [_with_interval("error_barrier", rows[rows["correction"] == name]["error_barrier"]) for name in corrections]
        texts = [with_interval_text(mean, "error_barrier") for mean in means]
        table.add_row(f"{width:g}", method if pd.isna(finder) else f"{method} (A by {finder})", f"{epoch:.0f}", *texts)
    return table


def imp_barrier_table(barriers: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, IMP round, sparsity, correction, split) of the lines from dense A, as `barrier_table`."""
    lines = barriers[barriers["imp_round"].notna()].copy()
    lines["sparsity"] = lines["sparsity"].round(4)
    return barrier_means(
        lines.sort_values(["imp_round", "split"], kind="stable"), ["width", "imp_round", "sparsity", "correction", "split"]
    )


def ensemble_table(ensembles: pd.DataFrame) -> pd.DataFrame:
    """Return one row per kind of ensemble: Table 1's columns, likelihood and calibration; percent, shares and nats.

    Where a sweep has several sets of a kind, values are means over its `sets`; `gain` is what together is over alone in
    points; `_low` and `_high` are 95 % confidence intervals over the sets (Student's t), missing for one.
    """
    cell = ["width", "arm", "sparsity", "rewind_epoch", "members"]
    plain = ["mean_nll", "ensemble_nll", "mean_calibration_error", "ensemble_calibration_error"]
    spread = ["mean_accuracy", "ensemble_accuracy", "gain", "disagreement", "kl", "js"]
    sets = ensembles.drop_duplicates("key") if "key" in ensembles else ensembles
    sets = sets.assign(gain=sets["ensemble_accuracy"] - sets["mean_accuracy"])
    sets = sets.reindex(columns=[*dict.fromkeys([*sets.columns, *cell, *spread, *plain])])
    rows = []
    for kind, group in sets.groupby(cell, sort=False, observed=True, dropna=False):
        found = {name: value for column in spread for name, value in _with_interval(column, group[column]).items()}
        means = {column: group[column].mean() for column in plain}
        rows.append(dict(zip(cell, kind, strict=True)) | {"sets": len(group)} | found | means)
    names = [f"{column}{end}" for column in spread for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*cell, "sets", *names, *plain]).rename(columns={"arm": "set"})


def barrier_means(barriers: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """Return what `barrier_table` says of the lines of each cell, cells as they come."""
    barriers = alike(barriers, cell).drop_duplicates(["key", "correction", "split"])  # sweeps of one store may share a line
    has_scaled = "scaled_loss_barrier" in barriers and barriers["scaled_loss_barrier"].notna().any()
    values = ["error", "loss", *(["scaled_loss"] if has_scaled else [])]
    measures = [f"{value}_{height}" for value in values for height in ("barrier", "mid")]
    barriers = barriers.reindex(columns=[*dict.fromkeys([*barriers.columns, *measures])])  # older runs have no middle
    rows = []
    for name, group in barriers.groupby(cell, observed=True, sort=False, dropna=False):
        found = {name: value for column in measures for name, value in _with_interval(column, group[column]).items()}
        rows.append(dict(zip(cell, name, strict=True)) | found | {"n": group["key"].nunique()})
    names = [f"{column}{end}" for column in measures for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*cell, *names, "n"])


def _with_interval(column: str, values: "pd.Series[float]") -> dict[str, float]:
    """Return a mean over replicates and its interval, by the names of their columns."""
    estimate = mean_of(values)
    low, high = estimate.interval
    if column.endswith("_barrier") and low < 0:
        low = 0.0
    return {column: estimate.value, f"{column}_low": low, f"{column}_high": high}


def with_interval_text(row: Mapping[Any, Any], column: str, *, digits: int = 1, signed: bool = False) -> str:
    """Return for instance "11.8 (6.2 to 17.4)": a value and its interval; without the interval where there is none."""
    kind = f"{'+' if signed else ''}.{digits}f"
    value, low, high = (row.get(f"{column}{end}") for end in ("", "_low", "_high"))
    if value is None or pd.isna(value):
        return ""
    return f"{value:{kind}}" if low is None or pd.isna(low) else f"{value:{kind}} ({low:{kind}} to {high:{kind}})"


def _arm_text(row: Any) -> str:
    text = _mean_text(row.mean, row.std, row.n) if row.n else "lost"
    return f"{text} *" if row.lost else text


def _mean_text(mean: float, std: float, count: int) -> str:
    return f"{mean:.1f} ± {std:.1f}" if count > 1 else f"{mean:.1f}"


def _dense_caption(results: pd.DataFrame) -> str:
    dense = dense_networks(results)
    lines = ["test accuracy in percent, mean ± standard deviation over replicates"]
    for width, rows in dense.groupby("width"):
        accuracy = rows["test_accuracy"]
        name = f"dense, width {width:g}" if dense["width"].nunique() > 1 else "dense"
        lines.append(f"{name}: {_mean_text(accuracy.mean(), accuracy.std(), len(accuracy))} (n = {len(accuracy)})")
    if note := lost_note(results):
        lines.append(f"* {note}")
    return "\n".join(lines)
