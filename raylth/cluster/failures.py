"""Why a worker ended, and what to do about it: preempted, out of memory and crashed are different things."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from raylth.cluster.gpus import DeviceLost
from raylth.cluster.warm import Warm
from raylth.core.memory import is_out_of_memory
from raylth.stages import Preempted, Stage, divergence
from raylth.store import BrokenArtefact, Store

__all__ = [
    "CRASHED",
    "NOT_STARTED",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "UNREACHABLE",
    "WHAT",
    "Autopsy",
    "cause_of",
    "delay",
    "given_up",
    "published",
]

PREEMPTED, OUT_OF_MEMORY, CRASHED = "preempted", "out of memory", "crashed"
UNREACHABLE = "storage unreachable"
NOT_STARTED = (
    "not started"  # Tune ended an actor that was still starting, because another had become free; or an idle one died
)
WHAT = {
    PREEMPTED: "its worker was preempted",
    OUT_OF_MEMORY: "out of memory",
    CRASHED: "its worker process died",
    NOT_STARTED: "its worker process did not start",
    UNREACHABLE: "the store did not answer",
}
LONGEST_DELAY = 60.0  # seconds
MOST_UNREACHABLE = 10  # times that a stage meets a store that does not answer; with the waits about 6 minutes


def cause_of(error: BaseException | None) -> str:
    """Tell from what Ray reports about a trial's actor why it ended."""
    if isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    if isinstance(error, Preempted) or getattr(error, "preempted", False):
        return PREEMPTED
    if "never ran" in str(error) or "SchedulingCancelled" in str(error):
        return NOT_STARTED
    if error is None or isinstance(error, DeviceLost):  # whose text may hold any CUDA error
        return CRASHED
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "memory pressure" in str(error) or is_out_of_memory(error):
        return OUT_OF_MEMORY
    return CRASHED


def delay(times: int) -> float:
    """Return the seconds to wait before a stage is started again for the `times`-th time: 1, 2, 4, ... 60."""
    return min(LONGEST_DELAY, 2.0 ** (times - 1))


def given_up(cause: str, times: int, retries: int, detail: str) -> str | None:
    """Return why a stage that met with a cause so many times is not started again, None when it is."""
    if cause in (CRASHED, NOT_STARTED) and times > retries:
        return f"its worker process died {times} times: {detail}"
    if cause == UNREACHABLE and times > MOST_UNREACHABLE:
        return f"the store did not answer {times} times: {detail}"
    return None


def published(stage: Stage, store: Store) -> tuple[bool, str | None]:
    """Return whether a worker published all of a stage before it ended, and how the training diverged, if it did.

    A store that does not answer, or has what is broken, is one that does not have it.
    """
    with contextlib.suppress(OSError, BrokenArtefact):
        if not store.has(stage.key):
            return False, None
        reason = divergence(store.metrics(stage.key))
        if reason is None and not all(store.has(key) for key in stage.produces):
            return False, None
        store.drop_state(stage.key)
        return True, reason
    return False, None


def _error_of(trial: Any) -> Exception | None:
    """Return what Tune noted in the driver's own folder; `get_pickled_error` looks where nothing was copied to yet."""
    if trial.pickled_error_file and Path(trial.pickled_error_file).exists():
        found: Exception = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        return found
    return RuntimeError(Path(trial.error_file).read_text().strip().splitlines()[-1]) if trial.error_file else None


class Autopsy(FIFOScheduler):
    """Tells the searcher why a trial's worker ended; Tune itself tells it only that it did.

    Tune's loop is watched from here, too: for the sake of a callback, Tune imports its integrations of all trackers that are
    installed (mlflow and wandb: 1.8 s).
    """

    def __init__(
        self,
        causes: dict[str, tuple[str, str]],
        has_team: Callable[[], bool] = lambda: False,
        is_closed: Callable[[], bool] = lambda: False,
        on_turn: Callable[[bool], None] = lambda any_runs: None,
    ) -> None:
        super().__init__()
        self.on_turn = on_turn  # told at every turn of Tune's loop whether any trial runs; what it raises ends the loop
        self.causes = causes  # trial -> (cause, what was raised), read by the searcher
        self.is_closed = is_closed  # whether no trial is to start any more
        self.warm = Warm()
        self.has_team = has_team  # whether a trial runs whose workers have resources of their own

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the first that waits. Tune keeps idle workers and what they hold; a team may be waiting for just that."""
        live = list(tune_controller.get_live_trials())
        self.on_turn(any(trial.status == Trial.RUNNING for trial in live))
        if self.is_closed():  # those that wait would be started by and by
            for waiting in (trial for trial in live if trial.status == Trial.PENDING):
                tune_controller.stop_trial(waiting)
        self.warm.turn(tune_controller)
        trial = None if self.is_closed() else super().choose_trial_to_run(tune_controller)
        if trial is None and self.has_team():
            tune_controller._cleanup_cached_actors(force_all=True)
        return trial

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note the cause; Tune calls this just before the searcher."""
        if trial in tune_controller._resetting_trials:  # and it stays there when that fails
            self.causes[trial.trial_id] = NOT_STARTED, "the idle worker that was to run it is gone"
            return
        error = _error_of(trial)
        raised = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        detail = str(raised).strip().splitlines()
        self.causes[trial.trial_id] = cause_of(error), f"{type(raised).__name__}: {detail[0] if detail else ''}"
