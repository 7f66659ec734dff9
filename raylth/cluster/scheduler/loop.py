"""Tune's loop: it runs a graph's stages as trials, passes progress on, and ends when it is asked to."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune

from raylth.cluster import ray_private
from raylth.cluster.address import Joining
from raylth.cluster.nodes.budget_meter import Meter, Watchdog
from raylth.cluster.nodes.capacity import sums
from raylth.cluster.scheduler.graph_searcher import GraphSearcher
from raylth.cluster.scheduler.places import Places
from raylth.cluster.scheduler.tasks import StageTasks
from raylth.cluster.scheduler.trial_scheduler import TrialScheduler
from raylth.cluster.worker.payload import Shared
from raylth.cluster.worker.stage_trial import StageTrial
from raylth.common import signals
from raylth.stages import Graph

__all__ = ["Watch", "run_loop"]

MACHINES_SECONDS = 5.0  # between two looks at what the cluster has
COUNTER_SECONDS = 0.5  # between two questions to the counter: each costs three processes a moment
Watch = Callable[[Graph, int, list[str]], None]  # (graph, epochs trained in this run, new notes)


def run_loop(searcher: GraphSearcher, shared: Shared, watch: Watch, joining: Joining, meter: Meter) -> None:
    """Run what the searcher suggests until it has no more, on the Ray that this process has joined.

    Raises KeyboardInterrupt when the process is interrupted (SIGINT, SIGTERM, SIGHUP). Tune's own files go to a folder
    that is removed in the end.
    """
    folder = tempfile.mkdtemp(prefix="raylth-tune-")
    try:
        with signals.deferred() as asked:
            pulse = _Pulse(searcher, shared.epoch_counter, watch, asked, meter)
            scheduler = TrialScheduler(searcher.causes, searcher.has_team, lambda: searcher.is_closed, pulse.on_turn)
            searcher.tasks = StageTasks(searcher, shared, Places(is_local=joining.is_local), scheduler.idle_workers)
            tuner = tune.Tuner(
                tune.with_parameters(StageTrial, shared=shared),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=-1,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    storage_path=folder,
                    name="tune",
                    verbose=1 if joining.verbose else 0,
                    failure_config=tune.FailureConfig(max_failures=0),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            with contextlib.suppress(_Closed):
                tuner.fit()
            pulse.pass_on()
    finally:
        if searcher.tasks is not None:
            searcher.tasks.places.close()
        meter.save()
        shutil.rmtree(folder, ignore_errors=True)


class _Closed(Exception):  # the end of a loop, no error
    """Nothing runs any more, and nothing is to start."""


class _Pulse:
    """Tune's loop calls this at every turn: it passes progress on and stops the loop when asked to."""

    def __init__(self, searcher: GraphSearcher, counter: Any, watch: Watch, asked: signals.Asked, meter: Meter) -> None:
        self.searcher, self.counter, self.watch, self.asked, self.meter = searcher, counter, watch, asked, meter
        self.watchdog = Watchdog(searcher.resources.capacity_minutes, ray_private.unavailable_node_types)
        self.looked_at = self.asked_at = float("-inf")
        self.epochs = 0  # trained in this run
        self.counts: dict[float, int] = {}  # since when a counter counts -> its last answer; one that died begins again at 0
        self.pending: Any = None
        searcher.on_turn = self.turn

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its inputs for a restore, which the store makes needless

    def on_turn(self, any_runs: bool) -> None:
        """Take a turn; the loop ends when nothing runs any more and nothing is to start."""
        self.turn()
        tasks = self.searcher.tasks
        if self.searcher.is_closed and not any_runs and not (tasks and tasks.running):
            raise _Closed

    def turn(self) -> None:
        """Pass on what is new; KeyboardInterrupt when the sweep is to stop."""
        if self.asked.by is not None:
            raise KeyboardInterrupt
        self._read_counter()
        self._look_at_machines()
        self.pass_on()

    def pass_on(self) -> None:
        """Show the progress of the sweep."""
        notes, self.searcher.notes = self.searcher.notes, []
        self.watch(self.searcher.graph, self.epochs, notes)

    def _look_at_machines(self) -> None:
        """Now and then: charge for them, say that none comes, stop when the budget is used up."""
        if time.monotonic() - self.looked_at < MACHINES_SECONDS:
            return
        self.looked_at = time.monotonic()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.meter.tick(nodes)
        self.searcher.see(sums(nodes))
        if (silence := self.watchdog.look(nodes, self.searcher.asked())) is not None:
            self.searcher.notes.append(silence)
        if self.meter.exhausted and not self.searcher.is_closed:
            self.searcher.is_closed = True
            self.searcher.notes.append(f"{self.meter.exhausted}: no further stage is started; running stages finish")

    def _read_counter(self) -> None:
        """Ask the counter without waiting; the answer is taken at a later turn."""
        if self.pending is None:
            if time.monotonic() - self.asked_at >= COUNTER_SECONDS:
                self.asked_at = time.monotonic()
                self.pending = self.counter.read.remote()
        elif ray.wait([self.pending], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):
                since, epochs = ray.get(self.pending)
                self.counts[since] = epochs
                self.epochs = sum(self.counts.values())
            self.pending = None
