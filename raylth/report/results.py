"""Loads the results of a store or of one run as data frames."""

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from raylth.common.omit import LATER, without_later
from raylth.report.measurements import wide_measurements
from raylth.store import Location, StorageUnreachable, locate
from raylth.store.run_files import MANIFEST, read_run_file
from raylth.store.tables import read_table

__all__ = [
    "find_run",
    "load_arms",
    "load_barriers",
    "load_curves",
    "load_ensembles",
    "load_lines",
    "load_manifest",
    "load_masks",
    "load_permutations",
    "load_planes",
    "load_results",
]

VARIED = {  # sections that decide what a sparse network is, and their keys that are columns or no science
    "data": {"root", "download"},
    "model": {"widths"},
    "seeds": {"replicates"},
    "dense": set[str](),
    "mask": {"finder"},  # a list of finders is an axis: each row's own counts
    "imp": set[str](),
    "sparse": {"arms", "sparsities", "rewinds"},
    "match": {"method", "epochs"},  # samples is a column of extra matches only
}


def find_run(store: str | Path, sweep: str) -> Location:
    """Return the folder of a sweep's run in a store, by the sweep's name: of several the last written.

    Raises FileNotFoundError, with the sweeps that are there, when there is none. A run whose manifest is harmed is left out,
    with a warning that names the file.
    """
    place = locate(store)
    runs = {}
    for name in (place / "runs").names(also_empty=True):
        try:
            manifest = load_manifest(place / "runs" / name)
            runs[name] = (str(manifest.get("written", "")), str(manifest["config"].get("name")))
        except FileNotFoundError:
            continue
        except StorageUnreachable:
            raise
        except (OSError, ValueError) as error:
            warnings.warn(f"{error}: left out", stacklevel=2)
    found = [(written, name) for name, (written, of) in runs.items() if of == sweep]
    if not found:
        there = ", ".join(sorted({of for _, of in runs.values()})) or "none"
        raise FileNotFoundError(f"{place}: no run of the sweep {sweep!r} here; there are: {there}")
    return place / "runs" / max(found)[1]


def load_manifest(run_dir: str | Path | Location) -> dict[str, Any]:
    """Load the manifest of one run's folder, `<store>/runs/<run>`: settings, versions, what was done and what was not.

    Raises FileNotFoundError when nothing was written there yet, ValueError, which names the file, when it is harmed.
    """
    run = run_dir if isinstance(run_dir, Location) else locate(run_dir)
    try:
        return read_run_file(run / "manifest.json", MANIFEST, needed=("config",))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{run}: no manifest.json here, so no sweep has written anything yet") from error


def load_results(run_dir: str | Path | Location) -> pd.DataFrame:
    """Load one row per finished network.

    `run_dir` is a store, or one run's folder inside it (`<store>/runs/<run>`), which gives that run's rows only. In a
    whole store a network that several runs of one sweep share has one row. Accuracies are percent, losses nats, times
    seconds; whole numbers that may be missing are pandas' nullable Int64. Raises FileNotFoundError naming the folder that
    holds no results.
    """
    return _load(run_dir, "results", ["sweep", "key"])


def load_arms(run_dir: str | Path | Location) -> pd.DataFrame:
    """Load one row per finished sparse network of a sweep's cells, however many sweeps share it: what can be averaged.

    `settings` names what else differs: the first run that has the same data and the same settings of data, network, training
    and, for arms under a permutation, matching. Group by it and by the columns that name a cell, and only replicates are
    averaged.
    """
    folder = run_dir if isinstance(run_dir, Location) else locate(run_dir)
    rows = load_results(folder)
    rows = rows[(rows["stage"] == "sparse") & (rows["status"] == "done") & rows["member"].isna()].sort_values(
        "run", kind="stable"
    )
    runs = folder.parent if folder.parent.name == "runs" else folder / "runs"
    configs = {run: _config(runs / run) for run in rows["run"].unique()}
    first: dict[tuple[str, str], str] = {}
    names = []
    columns = (rows[name] for name in ("run", "mask_finder", "match_method", "data_sha256"))
    for run, finder, method, data in zip(*columns, strict=True):
        what = _science(configs[run], run, finder, is_matched=not pd.isna(method)), str(data)
        if what not in first:
            is_other = any(name == run and known != what[1] for (_, known), name in first.items())
            first[what] = f"{run}, data {what[1][:8]}" if is_other else run
        names.append(first[what])
    return rows.assign(settings=names).drop_duplicates(["key", "settings"]).reset_index(drop=True)


def _config(run: Location) -> dict[str, Any] | None:
    try:
        return dict(load_manifest(run)["config"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _science(config: dict[str, Any] | None, run: str, finder: object, *, is_matched: bool) -> str:
    """Return, as text, the settings of a run that decide a row; the run's own name where they are not known.

    `finder` is the row's column, which older rows do not have.
    """
    if config is None:
        return run
    config = without_later(config)
    mask = config.get("mask") or LATER[""]["mask"]
    found = mask["finder"] if finder is None or pd.isna(finder) else finder
    kept = {
        section: {name: value for name, value in (config.get(section) or {}).items() if name not in left_out}
        for section, left_out in VARIED.items()
        if section != "match" or is_matched
    }
    return json.dumps({**kept, "finder": found, "search": config.get("search")}, sort_keys=True)


def load_curves(run_dir: str | Path | Location) -> pd.DataFrame:
    """Load one row per network and trained epoch; test columns are missing where no evaluation was made."""
    return _load(run_dir, "curves", ["key", "epoch"])


def load_permutations(run_dir: str | Path | Location) -> pd.DataFrame:
    """Load one row per match and symmetry group: the mean correlation of matched units and the share left in place."""
    return _load(run_dir, "permutations", ["sweep", "key", "unit_group"])


def load_barriers(run_dir: str | Path | Location) -> pd.DataFrame:
    """Load one row per line (`between` its ends), correction and split: the barriers of loss (nats) and error (points)."""
    return _load(run_dir, "barriers", ["sweep", "key", "correction", "split"])


def load_lines(run_dir: str | Path | Location) -> pd.DataFrame:
    """Load one row per point of a line, correction and split: loss (nats) and error (percent) at `alpha`."""
    return _load(run_dir, "lines", ["sweep", "key", "correction", "split", "alpha"])


def load_planes(run_dir: str | Path | Location) -> pd.DataFrame:
    """Load one row per point of a plane and split, and per network that it goes through (`corner`), as that is."""
    return _load(run_dir, "planes", ["sweep", "key", "split", "corner", "x", "y"])


def load_masks(run_dir: str | Path | Location) -> pd.DataFrame:
    """Load one row per layer of a mask (`other` is missing) and of two masks together; layer "all" is the whole network."""
    return _load(run_dir, "masks", ["sweep", "key", "mask", "other", "layer"])


def load_measurements(run_dir: str | Path | Location, analysis: str | None = None) -> pd.DataFrame:
    """Load what analyses of one's own measured: one row per quantity, or, of the `analysis` named, one per measured row."""
    found = _load(run_dir, "measurements", ["sweep", "key", "row", "quantity"])
    return found if analysis is None else wide_measurements(found, analysis)


def load_ensembles(run_dir: str | Path | Location) -> pd.DataFrame:
    """Load one row per set of networks: its accuracy alone and together, and how much its members differ."""
    return _load(run_dir, "ensembles", ["sweep", "key"])


def _load(run_dir: str | Path | Location, dataset: str, identity: list[str]) -> pd.DataFrame:
    folder = run_dir if isinstance(run_dir, Location) else locate(run_dir)
    is_run = folder.parent.name == "runs" and (folder / "manifest.json").exists()
    table = read_table(folder.parent.parent if is_run else folder, dataset, folder.name if is_run else None)
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame = table.to_pandas(types_mapper=nullable.get)
    return frame.drop_duplicates(identity, keep="last").reset_index(drop=True)
