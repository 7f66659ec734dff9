"""How far the sweeps of a store are, as plain objects: what `raylth status` prints, and what failed with its reason."""

import json
from collections import Counter
from datetime import datetime
from typing import Any

from raylth.driver.progress import STATES, duration, read_status, speed, state_of, used_text
from raylth.store import Location

__all__ = ["progress_of", "read_manifest", "sweeps_of"]


def sweeps_of(store: Location) -> list[dict[str, Any]]:
    """Return the progress of every run of a store, the last reported first, without stages and reasons."""
    found = [progress_of(store / "runs" / name) for name in (store / "runs").names()]
    short = [{name: run[name] for name in run if name not in ("stages", "failures")} for run in found if run is not None]
    return sorted(short, key=lambda run: (-(run["reported"] or 0.0), run["run"]))


def progress_of(run: Location) -> dict[str, Any] | None:
    """Return a run's state, counts of stages, time left and failures; None for a folder that is none of a run.

    Times of day are seconds since 1970, durations text. A run of an older version has no status: then the counts are its
    manifest's, and its state is "finished" where every stage is done, else "unknown".
    """
    status, manifest = read_status(run), read_manifest(run)
    if status is None and manifest is None:
        return None
    known: dict[str, Any] = status or {}
    counts = known.get("stages") or (manifest or {}).get("stages") or {}
    totals = Counter[str]()
    for states in counts.values():
        totals.update({name: int(number) for name, number in states.items() if number})
    done, total = totals["done"] + totals["diverged"], sum(totals.values())
    state = state_of(known) if status else "finished" if total and done == total else "unknown"
    failures, num_failures = _failures(status, manifest)
    left = known.get("left_seconds") if state == "running" else None
    return {
        "run": run.name,
        "name": (manifest or {}).get("config", {}).get("name", run.name),
        "state": state,
        "reported": known.get("time") or _written(manifest),
        "host": known.get("host", ""),
        "done": done,
        "total": total,
        "left": "" if left is None else duration(left),
        "speed": speed(known["epochs_per_second"]) if state == "running" and "epochs_per_second" in known else "",
        "elapsed": duration(known["elapsed_seconds"]) if "elapsed_seconds" in known else "",
        "used": used_text(known),
        "note": known.get("note") or "",
        "ended_workers": ", ".join(f"{times} {cause}" for cause, times in sorted(known.get("incidents", {}).items())),
        "stages": [{"stage": kind, **{name: states.get(name, 0) for name in STATES}} for kind, states in counts.items()],
        "failures": failures,
        "num_failures": num_failures,
    }


def read_manifest(run: Location) -> dict[str, Any] | None:
    """Return what a run wrote of its settings and stages; None where it has written nothing whole yet."""
    try:
        found = json.loads((run / "manifest.json").read())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _failures(status: dict[str, Any] | None, manifest: dict[str, Any] | None) -> tuple[list[dict[str, Any]], int]:
    """Return failed and diverged stages with their reasons, and their number; the manifest lists more, but is older."""
    listed, number = (manifest or {}).get("failures", []), (manifest or {}).get("num_failures", 0)
    if status is not None and status.get("num_errors", 0) != number:
        listed, number = status.get("errors", []), status.get("num_errors", 0)
    return [{name: one.get(name, "") for name in ("state", "stage", "error", "blocks")} for one in listed], number


def _written(manifest: dict[str, Any] | None) -> float | None:
    try:
        return datetime.fromisoformat((manifest or {})["written"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
