"""How far the sweeps of a store are, as plain objects: what `raylth status` prints, and what failed with its reason."""

from collections import Counter
from datetime import datetime
from typing import Any

from raylth.driver.progress import STATES, duration, load_status, speed, state_of, used_text
from raylth.store import Location, StorageUnreachable
from raylth.store.run_files import MANIFEST, RunFileBroken, read_run_file

__all__ = ["UNREADABLE", "progress_of", "sweeps_of"]

UNREADABLE = "cannot be read"  # the state of a run with a file that is harmed, or not ours to read


def sweeps_of(store: Location) -> list[dict[str, Any]]:
    """Return the progress of every run of a store, the last reported first, without stages and reasons."""
    found = [progress_of(store / "runs" / name) for name in (store / "runs").names(also_empty=True)]
    short = [{name: run[name] for name in run if name not in ("stages", "failures")} for run in found if run is not None]
    return sorted(short, key=lambda run: (-(run["reported"] or 0.0), run["run"]))


def progress_of(run: Location) -> dict[str, Any] | None:
    """Return a run's state, counts of stages, time left and failures; None for a folder that is none of a run.

    Times of day are seconds since 1970, durations text. A run of an older version has no status: then the counts are its
    manifest's, and its state is "finished" where every stage is done, else "unknown". One whose files cannot be read has the
    state `UNREADABLE`, and `note` has the file and the reason. Raises StorageUnreachable where a bucket does not answer.
    """
    try:
        status, manifest = load_status(run), _manifest(run)
    except StorageUnreachable:
        raise
    except (OSError, RunFileBroken) as error:
        return _progress(run, {"state": UNREADABLE, "time": 0.0, "note": " ".join(str(error).split())}, {})
    return None if status is None and manifest is None else _progress(run, status, manifest or {})


def _progress(run: Location, status: dict[str, Any] | None, manifest: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = status or {}
    counts = known.get("stages") or manifest.get("stages", {})
    totals = Counter[str]()
    for states in counts.values():
        totals.update({name: number for name, number in states.items() if number})
    done, total = totals["done"] + totals["diverged"], sum(totals.values())
    state = state_of(known) if status else "finished" if total and done == total else "unknown"
    failures, num_failures = _failures(status, manifest)
    left = known.get("left_seconds") if state == "running" else None
    return {
        "run": run.name,
        "name": str(manifest.get("config", {}).get("name") or run.name),
        "state": state,
        "reported": known.get("time") or _written(manifest),
        "host": known.get("host", ""),
        "done": done,
        "total": total,
        "left": "" if left is None else duration(left),
        "speed": speed(known["epochs_per_second"]) if state == "running" and "epochs_per_second" in known else "",
        "elapsed": duration(known["elapsed_seconds"]) if "elapsed_seconds" in known else "",
        "used": used_text(known),
        "note": known.get("note", ""),
        "ended_workers": ", ".join(f"{times} {cause}" for cause, times in sorted(known.get("incidents", {}).items())),
        "stages": [{"stage": kind, **{name: states.get(name, 0) for name in STATES}} for kind, states in counts.items()],
        "failures": failures,
        "num_failures": num_failures,
    }


def _manifest(run: Location) -> dict[str, Any] | None:
    """Return what a run wrote of its settings and stages; None where it has written nothing yet."""
    try:
        return read_run_file(run / "manifest.json", MANIFEST)
    except FileNotFoundError:
        return None


def _failures(status: dict[str, Any] | None, manifest: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Return failed and diverged stages with their reasons, and their number; the manifest lists more, but is older."""
    listed, number = manifest.get("failures", []), manifest.get("num_failures", 0)
    if status is not None and status.get("num_errors", 0) != number:
        listed, number = status.get("errors", []), status.get("num_errors", 0)
    return [{name: one.get(name, "") for name in ("state", "stage", "error", "blocks")} for one in listed], number


def _written(manifest: dict[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(manifest["written"]).timestamp()
    except (KeyError, ValueError):
        return None
