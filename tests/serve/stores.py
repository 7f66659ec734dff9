"""A store of rows made by hand: a finished sweep, one that runs, one that has only begun, one of an older version."""

import itertools
import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raylth.store.process import this_process
from raylth.store.tables import append_rows, write_table

ARMS = {"lth": 70.0, "permuted": 64.0, "naive": 58.0}
WIDTHS, SPARSITIES, REWINDS, REPLICATES, EPOCHS = (1.0, 2.0), (0.8, 0.9, 0.95), (0, 10), (0, 1, 2), 4
REASON = "Diverged: the training loss is nan <b>at epoch 3</b> & after"
STUDY, LIVE, BEGUN, OLD, PARTS = "study-1", "live-2", "begun-3", "old-4", "parts-5"
AHEAD = 3600.0  # seconds for which a running sweep is not taken for lost, however long the tests take


def manifest_of(run, **changes):
    return {
        "run": run, "written": "2026-11-21T10:00:00+00:00", "python": "3.11", "git_commit": None, "packages": {"torch": "2"},
        "hardware": {"system": "Linux", "cpus": 2, "machine": "x"},
        "config": {"name": run[:-2], "data": {"name": "digits"}, "model": {"name": "mlp"}},
        "stages": {"dense": {"done": 6}, "sparse": {"done": 53, "diverged": 1}}, "failures": [], "num_failures": 0, **changes,
    }  # fmt: skip


def status_of(state, **changes):
    return {
        "state": state, "time": time.time() + AHEAD, "host": "node", "pid": 1, "process": this_process(),
        "stages": {"dense": {"done": 2, "running": 2}, "sparse": {"waiting": 12}}, "epochs": 10, "epochs_per_second": 2.0,
        "elapsed_seconds": 65.0, "left_seconds": 200.0, "used": {"gpu_hours": 1.5}, "note": "", "incidents": {},
        "errors": [], "num_errors": 0, **changes,
    }  # fmt: skip


def network(run, **values):
    base = {
        "run": run,
        "sweep": run[:-2],
        "dataset": "digits",
        "model": "mlp",
        "status": "done",
        "data_sha256": "d",
        "epochs": EPOCHS,
    }
    return {**base, "key": json.dumps([run, values], sort_keys=True), **values}


def study_rows(run):
    """Every arm in every cell, three replicates; one network of naive diverged."""
    rng = np.random.default_rng(0)
    rows = [
        network(run, stage="dense", width=width, replicate=r, network=name, sparsity=0.0, test_accuracy=75.0 + rng.normal())
        for width, r, name in itertools.product(WIDTHS, REPLICATES, "AB")
    ]
    for width, sparsity, rewind, (arm, level), r in itertools.product(WIDTHS, SPARSITIES, REWINDS, ARMS.items(), REPLICATES):
        cell = {"width": width, "sparsity": sparsity, "rewind_epoch": rewind, "arm": arm, "replicate": r}
        is_lost = (width, sparsity, rewind, arm, r) == (2.0, 0.95, 10, "naive", 2)
        found = (
            {"status": "diverged", "error": REASON}
            if is_lost
            else {"test_accuracy": level - 20 * sparsity + rng.normal(0, 2)}
        )
        if arm == "permuted":
            found |= {"match_epoch": 4, "match_method": "activation"}
        rows.append(network(run, stage="sparse", **cell, pair_key=f"{width}-{r}", **found))
    return rows


def curve_rows(rows):
    rng = np.random.default_rng(1)
    return [
        {"key": row["key"], "run": row["run"], "epoch": epoch, "train_loss": 2.0 / epoch + rng.normal(0, 0.05),
         "test_accuracy": 10.0 * epoch + rng.normal() if row["width"] == 2.0 else None}
        for row in rows if row["status"] == "done" for epoch in range(1, EPOCHS + 1)
    ]  # fmt: skip


def line_rows(run):
    """The lines from pi(A) to B at both widths, and one between an arm and the ticket; two corrections."""
    rng = np.random.default_rng(2)
    lines, barriers = [], []
    arm = {"between": "pi^-1(permuted) - lth", "sparsity": 0.9, "rewind_epoch": 10}
    match = {"between": "pi(A) - B", "carries_masks": True, "match_epoch": 4, "match_method": "activation"}
    for width, r, kind, correction, split in itertools.product(
        WIDTHS, REPLICATES, (match, arm), ("plain", "repair"), ("train", "test")
    ):
        row = network(run, stage="line", width=width, replicate=r, **kind)
        row = {name: value for name, value in row.items() if name not in ("status", "epochs")}
        heights = 30 + 20 * np.sin(np.pi * np.linspace(0, 1, 5)) + rng.normal(0, 1, 5)
        lines += [
            {**row, "correction": correction, "split": split, "alpha": alpha, "error": float(error), "loss": 1.0}
            for alpha, error in zip((0.0, 0.25, 0.5, 0.75, 1.0), heights, strict=True)
        ]
        barriers.append({**row, "correction": correction, "split": split, "error_barrier": float(heights.max() - 30),
                         "error_mid": float(heights[2] - 30), "loss_barrier": 0.5, "loss_mid": 0.4})  # fmt: skip
    return lines, barriers


def write_json(place, content):
    place.write(json.dumps(content).encode())


def fill(store):
    """Write all runs into a store, which may be a bucket."""
    runs = store / "runs"
    write_study(store)
    write_json(runs / LIVE / "status.json", status_of("running"))
    (runs / BEGUN / "settled.json").write(b"{}")  # all that a run has in its first seconds
    write_old(store)
    write_parts(store)


def write_study(store, run=STUDY, *, rows=None):
    rows, (lines, barriers) = study_rows(run) if rows is None else rows, line_rows(run)
    manifest = manifest_of(run)
    tables = {"results": rows, "curves": curve_rows(rows), "lines": lines, "barriers": barriers}
    for dataset, content in tables.items():
        write_table(store, dataset, run, content, manifest)
    failure = {"stage": "sparse(replicate=2)", "state": "diverged", "error": REASON, "blocks": 3}
    stages = {"dense": {"done": 12}, "sparse": {"done": 107, "diverged": 1}}
    status = status_of("finished", stages=stages, errors=[failure], num_errors=1, left_seconds=None)
    write_json(store / "runs" / run / "status.json", status)
    write_json(
        store / "runs" / run / "manifest.json", {**manifest, "stages": stages, "failures": [failure], "num_failures": 1}
    )


def write_old(store):
    """What a version wrote that had neither a status nor pairs, curves or lines."""
    kept = (
        "key",
        "run",
        "sweep",
        "stage",
        "width",
        "replicate",
        "network",
        "arm",
        "sparsity",
        "rewind_epoch",
        "test_accuracy",
        "status",
    )
    rows = [{name: row.get(name) for name in kept} for row in study_rows(OLD) if row["width"] == 1.0]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    (store / "results" / f"{OLD}.parquet").write(buffer.getvalue().to_pybytes())
    manifest = manifest_of(OLD, stages={"dense": {"done": 6}, "sparse": {"done": 54}})
    write_json(
        store / "runs" / OLD / "manifest.json", {name: manifest[name] for name in ("run", "written", "config", "stages")}
    )


def write_parts(store):
    """A run that is written at the moment: parts, not joined yet, and a stage that failed."""
    rows = study_rows(PARTS)
    for half in (rows[:40], rows[40:80]):
        append_rows(store, "results", PARTS, half, manifest_of(PARTS))
    failure = {"stage": "match(replicate=1)", "state": "failed", "error": "RuntimeError: no", "blocks": 5}
    write_json(store / "runs" / PARTS / "manifest.json", manifest_of(PARTS))
    write_json(
        store / "runs" / PARTS / "status.json", status_of("running", errors=[failure], num_errors=1, left_seconds=3600.0)
    )
