"""Result datasets: one Parquet file per run and dataset, each with its schema version and the run's manifest."""

import io
import json
import os
import time
import warnings
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raylth.store.location import Location, StorageUnreachable

__all__ = [
    "DATASETS",
    "TABLE_SCHEMA",
    "HarmedTable",
    "append_rows",
    "compact_table",
    "read_table",
    "remove_tables",
    "set_aside_harmed",
    "write_table",
]

TABLE_SCHEMA = 2  # of the columns below
RENAMED = {"group": "unit_group"}  # columns of schema 1
PART = ".part-"
READ_TRIES = 5  # listings of files that were joined before they were read

_NETWORK = [
    ("key", pa.string()),
    ("run", pa.string()),
    ("sweep", pa.string()),
    ("stage", pa.string()),
    ("dataset", pa.string()),
    ("model", pa.string()),
    ("width", pa.float64()),
    ("replicate", pa.int64()),
    ("seed_a", pa.int64()),
    ("seed_b", pa.int64()),
    ("network", pa.string()),  # whose weights: A or B
    ("arm", pa.string()),
    ("sparsity", pa.float64()),  # asked for; 0 for dense
    ("imp_round", pa.int64()),
    ("landing", pa.bool_()),
    ("rewind_epoch", pa.int64()),
    ("match_epoch", pa.int64()),
    ("match_method", pa.string()),
    ("match_samples", pa.int64()),
    ("mask_finder", pa.string()),  # by which A's mask was found; null: a file, or what no mask has a part in
    ("schedule", pa.string()),
    ("member", pa.int64()),  # of an ensemble, where the network is there for that alone
    ("data_sha256", pa.string()),  # of the data that it was made from
]
DATASETS = {
    "results": pa.schema(
        [
            *_NETWORK,
            ("repeats", pa.string()),  # of the search, counted from 1, that found its settings: "1", or "1,3"; null: none
            ("pair_key", pa.string()),  # arms of a cell are paired where it is the same: they share A, B and A's mask
            ("epochs_a", pa.int64()),  # of dense A that this network needs
            ("epochs_imp", pa.int64()),  # of all rounds, or of the training with a changing mask, that lead to its mask
            ("epochs_b", pa.int64()),  # of dense B
            ("epochs_match", pa.float64()),  # passes over the training split; a forward pass counts as a third
            ("mask_sparsity", pa.float64()),  # reached, of the prunable weights
            ("model_sparsity", pa.float64()),  # reached, of all parameters
            ("epochs", pa.int64()),
            ("lr", pa.float64()),  # peak learning rate of its own training; null: not trained, or an earlier version
            ("batch_size", pa.int64()),
            ("optimizer", pa.string()),  # sgd or adamw
            ("test_accuracy", pa.float64()),  # percent
            ("test_top5", pa.float64()),  # percent, the class among the five likeliest
            ("test_loss", pa.float64()),  # nats
            ("train_loss", pa.float64()),  # nats, mean over the last epoch's steps
            ("seconds", pa.float64()),  # of training; not reproducible
            ("device", pa.string()),
            ("pack", pa.int64()),  # networks that trained as one program, this one included
            ("engine", pa.string()),  # by which its training steps were run
            ("workers", pa.int64()),  # processes that trained it together
            ("precision", pa.string()),  # arithmetic of its products in training
            ("loader", pa.string()),  # that decoded its images; null: they were in memory, or an earlier version
            ("status", pa.string()),  # done, diverged or failed
            ("error", pa.string()),
        ]
    ),
    "curves": pa.schema(
        [
            ("key", pa.string()),
            ("run", pa.string()),
            ("epoch", pa.int64()),
            ("train_loss", pa.float64()),
            ("test_loss", pa.float64()),
            ("test_accuracy", pa.float64()),
            ("test_top5", pa.float64()),
        ]
    ),
    "permutations": pa.schema(
        [
            *_NETWORK,
            ("unit_group", pa.string()),  # of the symmetry; `group` before, a word that SQL keeps for itself
            ("carries_masks", pa.bool_()),  # whether arms are trained under this permutation
            ("correlation", pa.float64()),  # mean over the matched units of a group; by weights: cosine
            ("fixed_share", pa.float64()),  # of units that stay where they are
            ("samples", pa.int64()),
        ]
    ),
    "barriers": pa.schema(
        [
            *_NETWORK,
            ("between", pa.string()),  # the two networks, such as "pi(A) - B"
            ("carries_masks", pa.bool_()),  # whether arms are trained under this permutation
            ("correction", pa.string()),  # plain, reset or repair
            ("split", pa.string()),  # train or test
            ("loss_barrier", pa.float64()),  # nats, never below 0
            ("error_barrier", pa.float64()),  # percentage points, never below 0
            ("loss_mid", pa.float64()),  # nats half-way above the chord between the ends; null where 1/2 is no point
            ("error_mid", pa.float64()),  # percentage points
            ("plain_loss_a", pa.float64()),  # of the first end, without correction
            ("plain_loss_b", pa.float64()),
            ("plain_error_a", pa.float64()),
            ("plain_error_b", pa.float64()),
            ("scaled_loss_barrier", pa.float64()),  # nats, of the losses at fitted temperatures; null: not asked for
            ("scaled_loss_mid", pa.float64()),  # nats half-way above the chord, at fitted temperatures
        ]
    ),
    "lines": pa.schema(
        [
            *_NETWORK,
            ("between", pa.string()),
            ("carries_masks", pa.bool_()),
            ("correction", pa.string()),
            ("split", pa.string()),
            ("alpha", pa.float64()),  # from the first network (0) to the second (1)
            ("loss", pa.float64()),  # nats
            ("error", pa.float64()),  # percent
            ("temperature", pa.float64()),  # fitted, geometric mean of two halves of the split; null: not asked for
            ("scaled_loss", pa.float64()),  # nats, each half's at the temperature that was fitted on the other
        ]
    ),
    "planes": pa.schema(
        [
            *_NETWORK,
            ("between", pa.string()),  # the three networks
            ("correction", pa.string()),  # plain or reset
            ("split", pa.string()),
            ("corner", pa.string()),  # which of the three; null: a point of the grid
            ("x", pa.float64()),  # distance of weights along the first two networks
            ("y", pa.float64()),  # and across
            ("loss", pa.float64()),  # nats
            ("error", pa.float64()),  # percent
            ("plain_loss", pa.float64()),  # of a corner, without correction
            ("plain_error", pa.float64()),
        ]
    ),
    "masks": pa.schema(
        [
            *_NETWORK,
            ("mask", pa.string()),  # A, pi(A) or B
            ("other", pa.string()),  # the mask that it is compared with; null: the mask alone
            ("layer", pa.string()),
            ("density", pa.float64()),  # share of the weights alive
            ("pruned_units", pa.int64()),  # outputs that no weight is left for
            ("units", pa.int64()),
            ("jaccard", pa.float64()),  # weights alive in both, of those alive in either
            ("expected_jaccard", pa.float64()),  # of two masks of these densities that have nothing to do with each other
        ]
    ),
    "measurements": pa.schema(  # of custom analyses
        [
            *_NETWORK,
            ("analysis", pa.string()),  # its name in the sweep file
            ("networks", pa.string()),  # that it was measured on
            ("row", pa.int64()),  # of those that one measurement gave, from 0
            ("quantity", pa.string()),
            ("value", pa.float64()),  # of a number or a bool
            ("text", pa.string()),  # of a text
        ]
    ),
    "ensembles": pa.schema(
        [
            *_NETWORK,
            ("set_number", pa.int64()),  # of the sets of its kind, from 0
            ("members", pa.int64()),
            ("mean_accuracy", pa.float64()),  # percent
            ("ensemble_accuracy", pa.float64()),  # percent, of the mean of the probabilities
            ("disagreement", pa.float64()),  # share of samples, mean over pairs
            ("kl", pa.float64()),  # nats, mean over pairs and samples, both directions averaged
            ("js", pa.float64()),  # nats, at most ln 2
            ("mean_nll", pa.float64()),
            ("ensemble_nll", pa.float64()),
            ("mean_calibration_error", pa.float64()),
            ("ensemble_calibration_error", pa.float64()),
        ]
    ),
}


class HarmedTable(ValueError):
    """A file that should be a Parquet table and cannot be read as one; the text names it."""


def write_table(root: Location, dataset: str, run: str, rows: list[dict[str, Any]], manifest: dict[str, Any]) -> Location:
    """Write a run's rows of one dataset to `<root>/<dataset>/<run>.parquet`, replacing the file in one step."""
    path = root / dataset / f"{run}.parquet"
    _write(path, pa.Table.from_pylist(rows, schema=DATASETS[dataset]), manifest)
    return path


def append_rows(root: Location, dataset: str, run: str, rows: list[dict[str, Any]], manifest: dict[str, Any]) -> Location:
    """Write rows of a running sweep to a part of their own beside its file; `compact_table` joins them.

    A stage's later rows replace its earlier ones.
    """
    path = root / dataset / f"{run}{PART}{time.time_ns():020d}-{os.getpid()}.parquet"
    _write(path, pa.Table.from_pylist(rows, schema=DATASETS[dataset]), manifest)
    return path


def compact_table(root: Location, dataset: str, run: str, order: Mapping[str, int], manifest: dict[str, Any]) -> Location:
    """Join a run's parts with its one file, stages by their rank in `order`; then the parts are removed.

    Other processes may run the same sweep: what they joined before is kept.
    """
    folder = root / dataset
    parts = [folder / name for name in folder.names() if name.startswith(run + PART)]  # in the order of their times
    seen: set[str] = set()
    tables = []
    for part in [*reversed(parts), folder / f"{run}.parquet"]:  # the latest rows of a stage count; the file comes last
        table = _read(part)
        if table is None:
            continue
        keys = table["key"].to_pylist()
        tables.append(table.filter(pa.array([key in order and key not in seen for key in keys], pa.bool_())))
        seen.update(keys)
    joined = pa.concat_tables([*tables, DATASETS[dataset].empty_table()], promote_options="default")
    ranks = pa.array([order[key] for key in joined["key"].to_pylist()], pa.int64())
    places = pa.array(range(len(joined)), pa.int64())  # the sort keeps the order inside a stage
    table = joined.append_column("rank", ranks).append_column("place", places)
    table = table.sort_by([("rank", "ascending"), ("place", "ascending")]).drop_columns(["rank", "place"])
    path = folder / f"{run}.parquet"
    _write(path, table, manifest)
    for part in parts:
        part.remove()
    return path


def _read(path: Location) -> pa.Table | None:
    """Read a file; None when it is not there, since another process of the same run joined it meanwhile.

    Columns have the names of this version. Raises HarmedTable for a file that is no whole Parquet table.
    """
    try:
        table = pq.read_table(pa.BufferReader(path.read()))
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, StorageUnreachable) or (isinstance(error, OSError) and error.errno is not None):
            raise  # the disk or the bucket, not the file
        raise HarmedTable(f"{path}: not a complete Parquet table ({str(error).splitlines()[0][:80]})") from error
    names = [RENAMED.get(name, name) for name in table.column_names]
    return table.rename_columns(names).replace_schema_metadata(table.schema.metadata)  # which the renaming drops


def remove_tables(root: Location, run: str) -> None:
    """Remove a run's rows of all datasets."""
    for dataset in DATASETS:
        for name in (root / dataset).names():
            if name == f"{run}.parquet" or name.startswith(run + PART):
                (root / dataset / name).remove()


def set_aside_harmed(root: Location, run: str) -> list[str]:
    """Move a run's tables that cannot be read to `<root>/broken/`; returns a line for each, with where it lies now."""
    notes = []
    for dataset in DATASETS:
        folder = root / dataset
        for name in folder.names():
            if name != f"{run}.parquet" and not name.startswith(run + PART):
                continue
            try:
                _read(folder / name)
            except HarmedTable as harmed:
                number = sum(1 for other in (root / "broken").names() if other.startswith(f"{dataset}-{name}"))
                aside = root / "broken" / f"{dataset}-{name}-{number}"
                aside.write((folder / name).read())
                (folder / name).remove()
                notes.append(f"{harmed}; set aside as {aside}, written anew from the stages")
    return notes


def _write(path: Location, table: pa.Table, manifest: dict[str, Any]) -> None:
    metadata = {"raylth_schema": str(TABLE_SCHEMA), "raylth_manifest": json.dumps(manifest)}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    path.write(buffer.getvalue())


def read_table(root: Location, dataset: str, run: str | None = None) -> pa.Table:
    """Read one run's rows of a dataset, or all runs' when `run` is None.

    A file that is no whole table is left out, with a UserWarning that names it. Raises FileNotFoundError with the path that
    was expected when there are none, ValueError for a newer schema.
    """
    folder = root / dataset
    for _ in range(READ_TRIES):
        names = sorted((name for name in folder.names() if name.endswith(".parquet")), key=_parts_last)
        if run is not None:
            names = [name for name in names if name == f"{run}.parquet" or name.startswith(run + PART)]
        if not names:
            raise FileNotFoundError(f"{folder}: no results here; expected {run or '*'}.parquet")
        read = {name: _read_whole(folder / name, dataset) for name in names}
        if None not in read.values():  # else parts have been joined since they were listed
            break
    tables = []
    for name, table in read.items():
        if table is None:
            continue
        version = int((table.schema.metadata or {}).get(b"raylth_schema", b"0"))
        if version > TABLE_SCHEMA:
            raise ValueError(f"{folder / name}: written by a newer raylth (schema {version}; this one reads {TABLE_SCHEMA})")
        tables.append(table.replace_schema_metadata(None))
    return pa.concat_tables([*tables, DATASETS[dataset].empty_table()][: len(tables) or 1], promote_options="default")


def _read_whole(path: Location, dataset: str) -> pa.Table | None:
    """Read a file as `_read` does; one that is harmed has no rows, with a warning."""
    try:
        return _read(path)
    except HarmedTable as harmed:
        warnings.warn(f"{harmed}: left out; the sweep's command writes it anew from its stages", stacklevel=4)
        return DATASETS[dataset].empty_table()


def _parts_last(name: str) -> tuple[str, bool, str]:
    """Order files so that a run's parts come after its file: later rows replace earlier ones."""
    return name.removesuffix(".parquet").partition(PART)[0], PART in name, name
