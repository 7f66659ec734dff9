"""A finished or running sweep in Tune's own form: `get_best_result` and `get_dataframe` on the networks of a store."""

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd
from pyarrow import fs

from raylth.cluster import ray_private
from raylth.report.results import load_curves, load_manifest, load_results
from raylth.store import DiskLocation, Location, locate

if TYPE_CHECKING:
    from ray.tune import ResultGrid

__all__ = ["result_grid"]

CONFIG = (
    "stage", "dataset", "model", "width", "replicate", "seed_a", "seed_b", "network", "arm", "sparsity", "imp_round",
    "landing", "rewind_epoch", "match_epoch", "match_method", "match_samples", "mask_finder", "schedule", "member",
)  # fmt: skip
LEFT_OUT = (*CONFIG, "key", "run", "sweep", "error")


def result_grid(run_dir: str | Path | Location) -> "ResultGrid":
    """Return the trained networks of one run's folder, `<store>/runs/<run>`, as a `ray.tune.ResultGrid`.

    One result for each: `config` has the columns that say which network it is, `metrics` what was measured in the end,
    `metrics_dataframe` a row for each epoch, `checkpoint` the store's folder with its weights and mask, `error` why it
    diverged or failed. Needs no running Ray. Raises FileNotFoundError where there is no run.
    """
    run = locate(str(run_dir)) if not isinstance(run_dir, Location) else run_dir
    load_manifest(run)
    rows = load_results(run)
    rows = rows[rows["epochs"].fillna(0).astype(int).gt(0) | rows["status"].ne("done")].drop_duplicates("key")
    curves = dict(list(load_curves(run).groupby("key")))
    root = run.parent.parent
    networks = [_network(row, curves.get(row["key"]), root) for row in rows.to_dict("records")]
    system, folder = _system(root), _path(run)
    logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
    with warnings.catch_warnings():  # in a notebook without ipywidgets Tune's import speaks of progress bars, twice
        warnings.filterwarnings("ignore", message="IProgress not found")
        found: ResultGrid = ray_private.result_grid(folder, system, networks)
    return found


def _network(row: dict[Any, Any], curve: pd.DataFrame | None, root: Location) -> SimpleNamespace:
    config = {name: row[name] for name in CONFIG if name in row and pd.notna(row[name])}
    measured = {name: value for name, value in row.items() if name not in LEFT_OUT and pd.notna(value)}
    points = [] if curve is None else curve.sort_values("epoch").drop(columns=["key", "run"]).to_dict("records")
    results = [
        {"training_iteration": int(point.pop("epoch")), **{name: value for name, value in point.items() if pd.notna(value)}}
        for point in points
    ]
    if results:
        results[-1] |= measured
    results = [{**result, "config": config} for result in results]
    return SimpleNamespace(
        id=row["key"],
        path=_path(root / "artefacts" / row["key"][:2] / row["key"]),
        config=config,
        results=results,
        frame=pd.json_normalize([{**result, "trial_id": row["key"]} for result in results], sep="/"),
        error=None
        if row["status"] == "done"
        else RuntimeError(f"{row['status']}: {row.get('error') or 'no reason is known'}"),
    )


def _system(place: Location) -> Any:
    return fs.LocalFileSystem() if isinstance(place, DiskLocation) else getattr(place, "system", None)


def _path(place: Location) -> str:
    return str(place.absolute()) if isinstance(place, DiskLocation) else str(getattr(place, "path", place))
