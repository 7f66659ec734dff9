"""Training that survives its process: its state is saved on the way, and a later process continues."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raylth.core.training.loop import Snapshots, TrainState
from raylth.stages.arrays import state_arrays, to_torch
from raylth.stages.context import Context
from raylth.store import BrokenArtefact

__all__ = ["Preempted", "Resume", "load_state"]

NUMBERS = ("epochs", "step", "losses", "loss_sum")


class Preempted(RuntimeError):
    """The process was asked to stop; its training is saved, and the same stage continues from there."""


def load_state(key: str, context: Context, not_beyond: int | None = None) -> tuple[TrainState, dict[str, Any]] | None:
    """Return a training's saved state and what was saved beside it; None when there is none, or it lies beyond that epoch.

    A state is used only by the training that wrote it: it lies under the stage's key and names the data. A state that is
    broken counts as none.
    """
    try:
        found = context.store.load_state(key)
    except BrokenArtefact:
        found = None
    if found is None or found[1]["data_sha256"] != context.data_sha256:
        return None
    files, numbers = found
    if not_beyond is not None and numbers["epochs"] > not_beyond:
        return None
    tensors = {name: to_torch(arrays, "cpu") for name, arrays in files.items()}
    state = TrainState(weights=tensors["weights"], momentum=tensors["momentum"], **{name: numbers[name] for name in NUMBERS})
    return state, numbers["beside"]


class Resume:
    """Saves the states of trainings that run together: every n epochs, and at once when the process is asked to stop."""

    def __init__(self, keys: Sequence[str], context: Context) -> None:
        self.store, self.keys, self.data_sha256 = context.store, list(keys), context.data_sha256
        self.uploads, self.is_saving = context.uploads, False
        self.team = context.team
        self.every, self.seconds, self.stopping = context.state_every, context.state_seconds, context.stopping
        self.saved_at = time.monotonic()

    def step(self, epochs: int, step: int, snapshots: Snapshots, beside: Callable[[], list[dict[str, Any]]]) -> None:
        """Take notice of a step: save when it is time, and when the last save has arrived.

        Raises Preempted, after saving, when the process must stop.
        """
        is_due = self.every > 0 and step == 0 and epochs % self.every == 0 and self.team.rank == 0
        is_due = is_due and time.monotonic() - self.saved_at >= self.seconds and not self.is_saving
        stopping, is_due = self.team.any(self.stopping(), is_due)
        if not stopping and not is_due:
            return
        ready = [self._arrays(state, extra) for state, extra in zip(snapshots(), beside(), strict=True)]
        self.saved_at = time.monotonic()
        if stopping:
            self.uploads.drain()
            how = self._save(ready)
            self.team.any(False)  # other processes must not end before the one that saves
            raise Preempted(f"asked to stop after {epochs} epochs and {step} steps; {how}")
        self.is_saving = self.team.rank == 0
        self.uploads.submit(lambda: self._save_behind(ready))

    def _arrays(self, state: TrainState, beside: dict[str, Any]) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        tensors = {"weights": state_arrays(state.weights), "momentum": state_arrays(state.momentum)}
        numbers = {name: getattr(state, name) for name in NUMBERS}
        return tensors, {**numbers, "data_sha256": self.data_sha256, "beside": beside}

    def _save_behind(self, ready: list[tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]]) -> None:
        self._save(ready)
        self.is_saving = False

    def _save(self, ready: list[tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]]) -> str:
        """Save, if this process is the one that does, and say how it went.

        A training does not end because the store could not keep a state of it.
        """
        if self.team.rank > 0:
            return "saved by the first process"
        try:
            for key, (tensors, numbers) in zip(self.keys, ready, strict=True):
                self.store.save_state(key, tensors, numbers)
        except OSError as error:
            return f"not saved: {error}"
        return "saved"
