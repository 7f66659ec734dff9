"""Progress of a sweep: its speed, and a status file in the store, readable from any machine that sees the store."""

import contextlib
import json
import platform
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from raylth.store import Location
from raylth.store.process import has_ended, this_process
from raylth.store.run_files import STATUS, RunFileBroken, read_run_file

if TYPE_CHECKING:  # `raylth.status` needs no stages, which import torch
    from raylth.stages import Graph

__all__ = [
    "STATES", "Pace", "StatusFile", "duration", "load_status", "process_has_ended", "read_status", "speed", "state_of",
    "used_text",
]  # fmt: skip

STATES = ("waiting", "running", "done", "diverged", "failed", "blocked")  # of a stage in a Graph, as columns of a table
WINDOW = 30.0  # seconds over which the speed is measured
ENOUGH = 5.0  # seconds of training that an estimate of the time left needs
WRITE_INTERVAL = 5.0  # seconds between two status files
SHOWN_ERRORS = 20
SILENCE = 150.0  # seconds without a word after which a running sweep's driver counts as gone


def duration(seconds: float) -> str:
    """Write a time for people: 48 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def speed(rate: float) -> str:
    """Write a speed for people: 2.0 epochs/s, or below one a second 20 s/epoch; no speed yet is "training"."""
    if rate <= 0:
        return "training"
    return f"{rate:.1f} epochs/s" if rate >= 1 else f"{1 / rate:.{0 if rate < 0.1 else 1}f} s/epoch"


class Pace:
    """Epochs per second over the last half minute, and what that says about the time left."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.samples: deque[tuple[float, int]] = deque()  # (time, epochs trained in this run), the first before training
        self.training_since: float | None = None

    def note(self, epochs: int) -> None:
        """Take in how many epochs this run has trained by now."""
        now = time.monotonic()
        self.samples.append((now, epochs))
        if epochs and self.training_since is None:
            self.training_since = now
        while len(self.samples) > 1 and (self.samples[1][1] == 0 or now - self.samples[0][0] > WINDOW):
            self.samples.popleft()

    @property
    def epochs(self) -> int:
        """What was noted last."""
        return self.samples[-1][1] if self.samples else 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def rate(self) -> float:
        """Epochs per second; 0 before the first epoch."""
        if not self.samples:
            return 0.0
        (first, before), (last, after) = self.samples[0], self.samples[-1]
        return (after - before) / (last - first) if last > first else 0.0

    def left(self, graph: "Graph") -> float | None:
        """Seconds that the epochs ahead take at this rate; None when that cannot be said, as in the first seconds."""
        if graph.finished or self.training_since is None or self.samples[-1][0] - self.training_since < ENOUGH:
            return None
        ahead = sum(
            stage.epochs
            for key, stage in graph.stages.items()
            if key not in graph.cached and graph.states[key] not in ("diverged", "failed", "blocked")
        )
        ahead -= self.epochs
        return ahead / self.rate if self.rate > 0 and ahead > 0 else None


class StatusFile:
    """Writes `runs/<run>/status.json` every few seconds and at the end; `raylth status` reads it."""

    def __init__(self, folder: Location) -> None:
        self.path = folder / "status.json"
        self.pace = Pace()
        self.written = float("-inf")
        self.process = this_process()

    def update(
        self, graph: "Graph", epochs: int, used: dict[str, float] | None = None, *, state: str = "running", note: str = ""
    ) -> None:
        """Write the status, if the last time is long enough ago or the run is no longer "running"."""
        now = time.monotonic()
        if state == "running" and now - self.written < WRITE_INTERVAL:
            return
        self.written = now
        self.pace.note(epochs)
        errors = [
            {"stage": graph.stages[key].name, "state": graph.states[key], "error": error, "blocks": blocks}
            for key, error in list(graph.errors.items())[:SHOWN_ERRORS]
            for blocks in [sum(blocker == key for blocker in graph.blockers.values())]
        ]
        status = {
            "state": state,
            "time": time.time(),
            "host": platform.node(),
            "pid": self.process["pid"],
            "process": self.process,
            "stages": {kind: dict(counts) for kind, counts in graph.count().items()},
            "epochs": epochs,
            "epochs_per_second": self.pace.rate,
            "elapsed_seconds": self.pace.elapsed,
            "left_seconds": self.pace.left(graph),
            "used": used or {},
            "note": note,
            "incidents": dict(graph.incidents),
            "errors": errors,
            "num_errors": len(graph.errors),
        }
        with contextlib.suppress(OSError):  # the status stays old; the sweep continues
            self.path.write(json.dumps(status, indent=1).encode())


def load_status(folder: Location) -> dict[str, Any] | None:
    """Return what a run last wrote about itself; None when it never did.

    An earlier version's may lack fields other than `state` and `time`. Raises RunFileBroken where the file holds something
    else, OSError where it cannot be read.
    """
    try:
        return read_run_file(folder / "status.json", STATUS, needed=("state", "time"))
    except FileNotFoundError:
        return None


def read_status(folder: Location) -> dict[str, Any] | None:
    """Return what a run last wrote about itself, None when it never did, or the file holds no complete status."""
    with contextlib.suppress(RunFileBroken):
        return load_status(folder)
    return None


def state_of(status: dict[str, Any]) -> str:
    """Return a sweep's state: one that is "running" is "lost" when its process is known to have ended, or is silent."""
    is_lost = status["state"] == "running" and (process_has_ended(status) or time.time() - status["time"] > SILENCE)
    return "lost" if is_lost else str(status["state"])


def process_has_ended(status: dict[str, Any]) -> bool:
    """Return whether the process that wrote a status is known to have ended."""
    return "process" in status and has_ended(status["process"])


def used_text(status: dict[str, Any]) -> str:
    """Write what a sweep has used for people, such as "1.50 GPU-hours, 3.20 USD"; "" where nothing is counted."""
    used = status.get("used", {})
    parts = [f"{used[name]:.2f} {unit}" for name, unit in (("gpu_hours", "GPU-hours"), ("usd", "USD")) if used.get(name)]
    return ", ".join(parts)
