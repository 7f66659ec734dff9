"""The accuracy table: mean and standard deviation over replicates, by sparsity, rewind point and arm."""

import pandas as pd
from rich.table import Table

__all__ = [
    "ARM_ORDER",
    "CELL",
    "accuracy_table",
    "alike",
    "arm_labels",
    "barrier_table",
    "dense_networks",
    "ensemble_table",
    "finished_arms",
    "imp_barrier_table",
    "line_table",
    "matched_lines",
    "overlap_table",
    "own_matches",
    "permutation_table",
    "render_barriers",
    "render_table",
    "wide_accuracy",
]

ARM_ORDER = ("lth", "permuted", "naive", "random_permutation", "random")
CELL = ("width", "sparsity", "rewind_epoch")
MATCH = ["width", "match_method", "match_epoch", "match_samples", "sparsity"]
DIFFERENT = "differ in a setting"


def accuracy_table(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, sparsity, rewind_epoch, arm): `mean`, `std` (n - 1) of test accuracy in percent, and `n`.

    An arm matched at several epochs of B has one row each, told apart in `label`. Only networks that finished count. Raises
    ValueError when runs that differ in another setting meet in one row: a replicate has one network there.
    """
    groups = finished_arms(results).groupby([*CELL, "arm", "label"], observed=True)["test_accuracy"]
    return groups.agg(mean="mean", std="std", n="count").reset_index()


def finished_arms(results: pd.DataFrame) -> pd.DataFrame:
    """Return the sparse networks that finished, each once, with their `label`; ValueError as `accuracy_table` says."""
    arms = results[(results["stage"] == "sparse") & (results["status"] == "done")].copy()
    if "member" in arms:
        arms = arms[arms["member"].isna()]  # the others are there for an ensemble alone
    arms["label"] = arm_labels(arms)
    return _once(arms, [*CELL, "arm", "label"], ["replicate"])


def dense_networks(results: pd.DataFrame) -> pd.DataFrame:
    """Return the dense networks that finished, each once; ValueError when runs give one width different ones."""
    dense = results[(results["stage"] == "dense") & (results["status"] == "done")]
    return _once(dense, ["stage", "width"], ["replicate", "network"])


def _once(networks: pd.DataFrame, cell: list[str], member: list[str]) -> pd.DataFrame:
    """Drop what sweeps share; ValueError when a cell then has a member twice, or members of two data sets or models."""
    networks = alike(networks, cell).drop_duplicates(["key", *cell])
    clash = networks.duplicated([*cell, *member], keep=False)
    if clash.any():
        raise _unlike(networks, clash, cell, DIFFERENT)
    return networks


def alike(rows: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """Return rows that are to be averaged by cell: every average passes here.

    Raises ValueError where a cell has rows of several data sets or models, or of data that changed in between.
    """
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


def arm_labels(arms: pd.DataFrame) -> "pd.Series[str]":
    """Return the name of each row's arm, with the matching method and epoch where a sweep has several."""
    labels = arms["arm"].astype(str)
    if "match_method" in arms and arms["match_method"].nunique() > 1:
        labels += arms["match_method"].map(lambda method: "" if pd.isna(method) else f" {method}").astype(str)
    if arms["match_epoch"].nunique() > 1:
        labels += arms["match_epoch"].map(lambda epoch: "" if pd.isna(epoch) else f" @{int(epoch)}").astype(str)
    return labels


def wide_accuracy(results: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy table for people: a row per width, sparsity and rewind point, a column per arm, as text."""
    cells = accuracy_table(results)
    pairs = set(zip(cells["arm"], cells["label"], strict=True))
    labels = [label for arm, label in sorted(pairs, key=lambda pair: (ARM_ORDER.index(pair[0]), pair[1]))]
    values = {(*row[:3], row[4]): row[5:] for row in cells.itertuples(index=False)}
    rows = [
        {
            "width": f"{width:g}",
            "sparsity": f"{sparsity:.2f}" if round(sparsity, 2) == sparsity else f"{sparsity:g}",
            "rewind k": str(rewind),
            **{label: _cell_text(values.get((width, sparsity, rewind, label))) for label in labels},
        }
        for width, sparsity, rewind in sorted({key[:3] for key in values})
    ]
    return pd.DataFrame(rows, columns=["width", "sparsity", "rewind k", *labels])


def render_table(results: pd.DataFrame, title: str, *, max_width: int = 80) -> Table:
    """Lay the accuracy table out for a terminal of `max_width` columns: a row per width, sparsity and rewind point and a
    column per arm; with more arms than fit, a row per arm, too."""
    cells = wide_accuracy(results)
    if cells["width"].nunique() < 2:
        cells = cells.drop(columns="width")
    labels = list(cells.columns[cells.columns.get_loc("rewind k") + 1 :])
    headings = [name for name in cells if name not in labels]
    taken = sum(max(len(text), 10) + 3 for text in labels) + sum(len(text) + 3 for text in headings) + 1
    is_wide = taken <= max_width
    table = Table(title=title, caption=_dense_caption(results), title_justify="left", caption_justify="left")
    for heading in headings + (labels if is_wide else ["arm", "accuracy"]):
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
    return alike(own, [*MATCH, "carries_masks", "group"]).drop_duplicates(["key", "group"])


def permutation_table(permutations: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, match method, epoch and samples, group): mean correlation, share left in place, and n."""
    cell = [*MATCH, "group"]
    groups = own_matches(permutations).groupby(cell, observed=True, sort=False, dropna=False)
    return groups.agg(
        correlation=("correlation", "mean"), fixed_share=("fixed_share", "mean"), n=("key", "nunique")
    ).reset_index()


def barrier_table(barriers: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, match method, epoch and samples, correction, split) of the lines from pi(A) to B: mean and
    deviation of both barriers, and n. Where masks bring a network of their own, there is a match, and a row, per sparsity."""
    cell = [*MATCH, "correction", "split"]
    return _barrier_means(matched_lines(barriers), cell)


def line_table(barriers: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (ends, width, sparsity, rewind point, correction, split) of the other lines, as `barrier_table`."""
    others = barriers[barriers["carries_masks"].isna() & barriers["imp_round"].isna()]
    return _barrier_means(others, ["between", "width", "sparsity", "rewind_epoch", "correction", "split"])


def overlap_table(masks: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, sparsity, layer, two masks): overlap, what chance gives; density and pruned units of the
    first, means over replicates."""
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
    table = Table(title="error barrier between pi(A) and B on the test split, percentage points", title_justify="left")
    test = matched_lines(barriers)
    test = test[test["split"] == "test"]
    corrections = [name for name in ("plain", "reset", "repair") if (test["correction"] == name).any()]
    for heading in ("width", "matched by", "epoch", *corrections):
        table.add_column(heading, justify="right")
    for (width, method, epoch), rows in test.groupby(["width", "match_method", "match_epoch"], sort=False):
        values = [rows[rows["correction"] == name]["error_barrier"] for name in corrections]
        texts = [f"{value.mean():.1f} ± {value.std():.1f}" if len(value) > 1 else f"{value.mean():.1f}" for value in values]
        table.add_row(f"{width:g}", str(method), f"{epoch:.0f}", *texts)
    return table


def imp_barrier_table(barriers: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (width, IMP round, sparsity, correction, split) of the lines from dense A, as `barrier_table`."""
    lines = barriers[barriers["imp_round"].notna()].copy()
    lines["sparsity"] = lines["sparsity"].round(4)
    return _barrier_means(lines.sort_values("imp_round"), ["width", "imp_round", "sparsity", "correction", "split"])


def ensemble_table(ensembles: pd.DataFrame) -> pd.DataFrame:
    """Return one row per ensemble: Table 1's columns, likelihood and calibration; percent, shares and nats."""
    columns = ["width", "arm", "sparsity", "rewind_epoch", "members", "mean_accuracy", "ensemble_accuracy", "disagreement"]
    columns += ["kl", "js", "mean_nll", "ensemble_nll", "mean_calibration_error", "ensemble_calibration_error"]
    return ensembles[columns].rename(columns={"arm": "set"})


def _barrier_means(barriers: pd.DataFrame, cell: list[str]) -> pd.DataFrame:
    """Return mean and standard deviation (n - 1) of both barriers over the lines of each cell, cells as they come."""
    barriers = alike(barriers, cell).drop_duplicates(["key", "correction", "split"])  # sweeps of one store may share a line
    groups = barriers.groupby(cell, observed=True, sort=False, dropna=False)
    return groups.agg(
        error_barrier=("error_barrier", "mean"),
        error_std=("error_barrier", "std"),
        loss_barrier=("loss_barrier", "mean"),
        loss_std=("loss_barrier", "std"),
        n=("key", "nunique"),
    ).reset_index()


def _cell_text(value: tuple[float, float, int] | None) -> str:
    if value is None:
        return "-"
    mean, std, count = value
    return f"{mean:.1f} ± {std:.1f}" if count > 1 else f"{mean:.1f}"


def _dense_caption(results: pd.DataFrame) -> str:
    dense = dense_networks(results)
    lines = ["test accuracy in percent, mean ± standard deviation over replicates"]
    for width, rows in dense.groupby("width"):
        accuracy = rows["test_accuracy"]
        name = f"dense, width {width:g}" if dense["width"].nunique() > 1 else "dense"
        text = _cell_text((accuracy.mean(), accuracy.std(), len(accuracy)))
        lines.append(f"{name}: {text} (n = {len(accuracy)})")
    return "\n".join(lines)
