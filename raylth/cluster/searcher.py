"""The Tune searcher that knows what depends on what: it suggests a stage when that stage's own parents exist."""

import contextlib
import heapq
import random
import time
from typing import Any

from ray.tune.search import Searcher

from raylth.cluster.failures import CRASHED, NOT_STARTED, OUT_OF_MEMORY, PREEMPTED, UNREACHABLE, bigger_share, delay
from raylth.config import ResourcesConfig, Share
from raylth.stages import Graph, Stage
from raylth.store import Store

__all__ = ["GraphSearcher"]

MOST_UNREACHABLE = 10  # times that a stage meets a store that does not answer; with the waits about 6 minutes
MOST_CANCELLED_STARTS = 20  # of one stage, before they count as crashes
WHAT = {
    PREEMPTED: "its worker was preempted",
    OUT_OF_MEMORY: "out of memory",
    CRASHED: "its worker process died",
    NOT_STARTED: "its worker process did not start",
    UNREACHABLE: "the store did not answer",
}
ELSEWHERE_DELAY = 2.0  # seconds until a stage that another sweep computes is asked for again


class GraphSearcher(Searcher):
    """Walks a graph of stages for Tune. A trial receives a key and its share of a machine, nothing else.

    `suggest` returns None while everything that is left waits for a running stage or for its time, so no trial ever
    holds resources while it waits, and `FINISHED` when the whole graph is. What a worker's end means depends on its cause:

    - preempted: started again, however often;
    - out of memory: started again with the next larger share of a GPU, up to a whole one;
    - the store does not answer: started again ten times, after longer and longer waits;
    - crashed: started again `resources.retries` times;
    - a stage's own error: failed at once, it would happen again.
    """

    def __init__(self, graph: Graph, store: Store, resources: ResourcesConfig) -> None:
        super().__init__()
        self.graph, self.store, self.resources = graph, store, resources
        self.running: dict[str, Stage] = {}  # trial -> stage
        self.causes: dict[str, tuple[str, str]] = {}  # trial -> why its worker ended, and the error; Autopsy writes it
        self.times: dict[tuple[str, str], int] = {}  # (stage key, cause) -> how often
        self.shares: dict[str, Share] = {}  # stage key -> its share, where it had to grow
        self.delayed: list[tuple[float, str]] = []  # heap of (when, stage key)
        self.notes: list[str] = []  # what a person should be told, in order

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its inputs for a restore, which the store makes needless

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is text
        """Return the next stage that may run, None to be asked again later, FINISHED at the end."""
        while self.delayed and self.delayed[0][0] <= time.monotonic():
            self.graph.retry(heapq.heappop(self.delayed)[1])
        stage = self.graph.next_ready()
        if stage is None:
            return Searcher.FINISHED if self.graph.finished else None
        self.running[trial_id] = stage
        share = self._share(stage)
        return {"stage": stage.key, "cpus": share.cpus, "gpus": share.gpus}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take a stage's end into the graph: done, diverged, failed, or to be run again."""
        stage = self.running.pop(trial_id)
        if error or result is None:
            self._worker_ended(stage, *self.causes.pop(trial_id, (CRASHED, "no reason known")))
        elif result["outcome"] == "done":
            self.graph.num_computed += result["computed"]
            self.graph.finish(stage.key)
        elif result["outcome"] == "elsewhere":  # another sweep on this store is at it
            self._hold(stage, ELSEWHERE_DELAY * random.uniform(0.5, 1.5))  # two that met do not meet again
        elif result["outcome"] == "diverged":
            self.graph.diverge(stage.key, result["error"])
            self.notes.append(f"{stage.name} diverged: {result['error']}")
        elif result["outcome"] == "broken":
            aside = self.store.set_aside(result["broken"])
            self.notes.append(f"{stage.name}: {result['error']}; set aside as {aside}, will be computed again")
            self.graph.retry(stage.key)
            self.graph.lose(result["broken"])
        elif result["outcome"] == "out of memory":
            self._worker_ended(stage, OUT_OF_MEMORY, result["error"])
        elif result["outcome"] == "unreachable":
            self._worker_ended(stage, UNREACHABLE, result["error"])
        else:
            self._fail(stage, result["error"])

    def _worker_ended(self, stage: Stage, cause: str, detail: str) -> None:
        times = self.times[stage.key, cause] = self.times.get((stage.key, cause), 0) + 1
        if cause == NOT_STARTED and times <= MOST_CANCELLED_STARTS:  # nothing was lost, and nobody need know
            self._hold(stage, delay(times))
            return
        self.graph.incidents[cause] += 1
        with contextlib.suppress(OSError):  # a store that does not answer: looked at again later
            if all(self.store.has(key) for key in stage.produces):
                self.store.drop_state(stage.key)  # it ended after publishing
                self.graph.finish(stage.key)
                return
        why_not = self._grow(stage, times) if cause == OUT_OF_MEMORY else self._given_up(cause, times, detail)
        if why_not is not None:
            self._fail(stage, why_not)
            return
        wait = 0.0 if cause == CRASHED else delay(times)
        with_share = f" with {self._shown(stage)}" if cause == OUT_OF_MEMORY else ""
        when = f" in {wait:g} s" if wait else ""
        self.notes.append(f"{stage.name}: {WHAT[cause]}; started again{with_share}{when} ({times}): {detail}")
        self._hold(stage, wait)

    def _given_up(self, cause: str, times: int, detail: str) -> str | None:
        """Return why a stage is not started again, None when it is."""
        if cause in (CRASHED, NOT_STARTED) and times > self.resources.retries:
            return f"its worker process died {times} times: {detail}"
        if cause == UNREACHABLE and times > MOST_UNREACHABLE:
            return f"the store did not answer {times} times: {detail}"
        return None

    def _grow(self, stage: Stage, times: int) -> str | None:
        """Give a stage that ran out of memory the next larger share; return why it is given up, None when it is not."""
        share = bigger_share(self._share(stage))
        has_grown = share is not None and share != self._share(stage)
        if share is None or not (has_grown or times <= self.resources.retries):
            return f"out of memory {times} times, at last with {self._shown(stage)}"
        self.shares[stage.key] = share
        return None

    def _hold(self, stage: Stage, seconds: float) -> None:
        self.graph.hold(stage.key)
        heapq.heappush(self.delayed, (time.monotonic() + seconds, stage.key))

    def _share(self, stage: Stage) -> Share:
        share: Share = getattr(self.resources, stage.kind)
        return self.shares.get(stage.key, share)

    def _shown(self, stage: Stage) -> str:
        """Return a stage's share for people."""
        share = self._share(stage)
        gpus = f", {share.gpus:g} GPU" if share.gpus else ""
        return f"{share.cpus} CPU{gpus}"

    def _fail(self, stage: Stage, error: str) -> None:
        self.graph.fail(stage.key, error)
        self.notes.append(f"{stage.name} failed: {error}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore intermediate results: a trial reports once."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the store is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the store is the state."""
