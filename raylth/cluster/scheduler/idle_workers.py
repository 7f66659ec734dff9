"""Briefly idle workers are kept: starting one takes seconds, and most of them are torch's import.

Tune keeps one idle worker, and ends every other that becomes idle while no trial waits, as all but one do while a chain of
pruning rounds runs. A worker that is started later may never come up: whenever another becomes free meanwhile, Tune gives
that one the trial, and ends the one that is starting.
"""

import time
from typing import Any

from raylth.cluster import ray_private

__all__ = ["IdleWorkers"]

MANY = 10_000  # more workers than a sweep has
LONGEST = 30.0  # seconds: a machine that is not needed for longer may be given back


class IdleWorkers:
    """Lets Tune keep idle workers, for half a minute, and as long as no trial waits that would need what they hold."""

    def __init__(self) -> None:
        self.kept: set[Any] = set()  # resources whose idle workers are kept
        self.idle_since: float | None = None
        self.controller: Any = None  # Tune's, once its loop turns

    def end_one(self) -> None:
        """End an idle worker, if there is any: a task needs what it holds."""
        if self.controller is not None:
            ray_private.end_idle_worker(self.controller)

    def take_event(self) -> None:
        """Take the end of a worker, while Tune's loop does not turn: without trials it waits for its searcher."""
        if self.controller is not None and not any(
            trial.status in (trial.PENDING, trial.RUNNING) for trial in ray_private.live_trials(self.controller)
        ):
            ray_private.take_event(self.controller)

    def turn(self, controller: Any) -> None:
        """Take a turn of Tune's loop."""
        self.controller = controller
        live = ray_private.live_trials(controller)
        if not ray_private.num_idle_workers(controller):
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = time.monotonic()
        waiting = [trial for trial in live if trial.status == trial.PENDING and not ray_private.has_worker(controller, trial)]
        others_wait = any(not ray_private.has_idle_worker(controller, trial.placement_group_factory) for trial in waiting)
        is_long = self.idle_since is not None and time.monotonic() - self.idle_since > LONGEST
        wanted = set() if others_wait or is_long else {trial.placement_group_factory for trial in live} | self.kept
        for resources in wanted - self.kept:
            ray_private.keep_idle_workers(controller, resources, MANY)
        for resources in self.kept - wanted:
            ray_private.release_idle_workers(controller, resources, MANY)
        self.kept = wanted
