"""Tune's scheduler of a sweep: in order of arrival, and with the reason of each worker's end for the searcher."""

from collections.abc import Callable
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from raylth.cluster import ray_private
from raylth.cluster.failures import NOT_STARTED, cause_of
from raylth.cluster.scheduler.idle_workers import IdleWorkers

__all__ = ["TrialScheduler"]


class TrialScheduler(FIFOScheduler):
    """Records why a trial's worker ended, for the searcher; Tune itself reports only that it did.

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
        self.on_turn = on_turn  # called at every turn of Tune's loop with whether a trial runs; what it raises ends the loop
        self.causes = causes  # trial -> (cause, what was raised), read by the searcher
        self.is_closed = is_closed  # whether no trial is to start any more
        self.idle_workers = IdleWorkers()
        self.has_team = has_team  # whether a trial runs whose workers have resources of their own

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the first that waits. Tune keeps idle workers and what they hold; a team may be waiting for just that."""
        live = ray_private.live_trials(tune_controller)
        self.on_turn(any(trial.status == Trial.RUNNING for trial in live))
        if self.is_closed():  # pending trials would otherwise still start
            for waiting in (trial for trial in live if trial.status == Trial.PENDING):
                ray_private.stop_trial(tune_controller, waiting)
        self.idle_workers.turn(tune_controller)
        trial = None if self.is_closed() else super().choose_trial_to_run(tune_controller)
        if trial is None and self.has_team():
            ray_private.end_idle_workers(tune_controller)
        return trial

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Note the cause; Tune calls this just before the searcher."""
        if ray_private.is_resetting(tune_controller, trial):  # and it stays there when that fails
            self.causes[trial.trial_id] = NOT_STARTED, "the idle worker assigned to it has ended"
            return
        error = ray_private.error_of_trial(trial)
        raised = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        detail = str(raised).strip().splitlines()
        self.causes[trial.trial_id] = cause_of(error), f"{type(raised).__name__}: {detail[0] if detail else ''}"
