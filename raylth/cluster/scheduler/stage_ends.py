"""What the end of a trial or a task means for its stages: done, diverged, failed, or to be run again."""

import contextlib
import heapq
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raylth.cluster.failures import CRASHED, NOT_STARTED, OUT_OF_MEMORY, WHAT, delay, given_up, published
from raylth.cluster.scheduler.packing import Packs
from raylth.cluster.slots import Shares, Slot
from raylth.config.resources import ResourcesConfig
from raylth.stages import Graph, Stage
from raylth.store import BrokenArtefact, Store

__all__ = ["StageEnds"]

MOST_CANCELLED_STARTS = 20  # of one stage, before they count as crashes
MOST_ELSEWHERE_DELAY = 60.0
ELSEWHERE_DELAY = 2.0  # seconds until a stage that another sweep computes is asked for again


class StageEnds:
    """Takes the ends of stages into the graph. What a lost worker leads to depends on its cause:

    - preempted: restarted, however often;
    - out of memory: restarted with the next larger share of a GPU, up to a whole one; a pack, in smaller packs;
    - the store does not answer: restarted ten times, with exponential backoff;
    - crashed: restarted `resources.retries` times; a pack, in halves until a stage is by itself;
    - a stage's own error: failed at once, it would happen again.
    """

    def __init__(
        self,
        graph: Graph,
        store: Store,
        resources: ResourcesConfig,
        gpus: Sequence[tuple[str, int]] = (),
        machines: Mapping[str, float] | None = None,
    ) -> None:
        self.graph, self.store, self.resources = graph, store, resources
        self.shares = Shares(resources, store, list(gpus))
        self.machines = dict(machines or {})  # resource -> how much of it all have, also those that may come
        self.packs = Packs(resources, store, self.shares.name, self.machines)
        self.seconds: dict[str, float] = {}  # kind -> what a stage of it takes, a running mean
        self.times: dict[tuple[str, str], int] = {}  # (stage key, cause) -> how often
        self.elsewhere: Counter[str] = Counter()  # stage key -> how often another sweep was found at it
        self.delayed: list[tuple[float, str]] = []  # heap of (when, stage key)
        self.notes: list[str] = []  # messages for the user, in order

    def ended(self, stages: list[Stage], slot: Slot, result: dict[str, Any]) -> None:
        """Take what a trial or a task returned of its stages into the graph."""
        self.notes += self.packs.news(result.get("notes", ()))
        if "ran_out" in result:
            self.graph.incidents[OUT_OF_MEMORY] += 1
            self.notes += self.packs.ran_out(stages[0], slot, result["ran_out"], result["fits"])
        for stage, ended in zip(stages, result["outcomes"], strict=True):
            self._ended(stage, slot, ended)

    def _ended(self, stage: Stage, slot: Slot, result: dict[str, Any]) -> None:
        """Take one stage's end into the graph: done, diverged, failed, or to be run again."""
        if result.get("pack_size"):
            self.packs.learn(stage, slot, result["pack_size"], result["pack_rates"], result["pack_engine"])
        if result.get("peak_bytes") and slot.gpus == 1:
            self._learn(stage, result["peak_bytes"])
        if result["outcome"] == "done":
            if result["computed"]:
                before = self.seconds.get(stage.kind, result["seconds"])
                self.seconds[stage.kind] = 0.8 * before + 0.2 * result["seconds"]
            self.graph.num_computed += result["computed"]
            self.graph.finish(stage.key)
        elif result["outcome"] == "tried":
            self.graph.retry(stage.key)
        elif result["outcome"] == "elsewhere":  # another sweep on this store is at it
            self.elsewhere[stage.key] += 1
            wait = min(MOST_ELSEWHERE_DELAY, ELSEWHERE_DELAY * 1.5 ** (self.elsewhere[stage.key] - 1))
            self.hold(stage, wait * random.uniform(0.5, 1.0))  # two that met do not meet again
        elif result["outcome"] == "diverged":
            self.graph.diverge(stage.key, result["error"])
            self.notes.append(f"{stage.name} diverged: {result['error']}")
        elif result["outcome"] == "broken":
            self._lose(stage, result["broken"], result["error"])
        elif result["outcome"] in WHAT:
            self.lost([stage], result["outcome"], result["error"])
        else:
            self._fail(stage, result["error"])

    def lost(self, stages: list[Stage], cause: str, detail: str) -> None:
        """Take in that a worker ended at the first of its stages that is not in the store; the others are not to blame."""
        ahead = [stage for stage in stages if not self._take_published(stage)]
        for stage in ahead[1:]:
            self.graph.retry(stage.key)
        if ahead:
            self._met(ahead[0], cause, detail)
        elif cause != NOT_STARTED:
            self.graph.incidents[cause] += 1  # just after publishing

    def pack_ended(self, stages: list[Stage], slot: Slot, cause: str, detail: str) -> None:
        """Take in that a worker ended while it trained a pack: no stage is to blame, and smaller packs are tried."""
        ahead = [stage for stage in stages if not self._take_published(stage)]
        self.graph.incidents[cause] += 1
        if cause == OUT_OF_MEMORY:
            self.notes += self.packs.ran_out(stages[0], slot, len(stages), len(stages) // 2, killed=True)
        else:
            self.notes += self.packs.crashed(ahead, len(stages), detail)
        for stage in ahead:
            self.graph.retry(stage.key)

    def _take_published(self, stage: Stage) -> bool:
        """Take the end of a stage from the store; False when it is not all there, or the store does not answer."""
        is_there, reason = published(stage, self.store)
        if is_there and reason is None:
            self.graph.finish(stage.key)
        elif is_there:
            self.graph.diverge(stage.key, str(reason))
        return is_there

    def _lose(self, stage: Stage, key: str, error: str) -> None:
        """Have a parent made again that a stage found broken, unless that was done since."""
        with contextlib.suppress(OSError):
            try:
                self.store.verify(key)
            except BrokenArtefact:
                aside = self.store.set_aside(key)
                self.graph.lose(key)
                self.notes.append(f"{stage.name}: {error}; set aside as {aside}, will be computed again")
        self.graph.retry(stage.key)

    def _met(self, stage: Stage, cause: str, detail: str) -> None:
        """Start a stage again whose worker ended, or give it up; what counts depends on the cause."""
        times = self.times[stage.key, cause] = self.times.get((stage.key, cause), 0) + 1
        if cause == NOT_STARTED and times <= MOST_CANCELLED_STARTS:  # nothing was lost, and nobody need know
            self.hold(stage, delay(times))
            return
        self.graph.incidents[cause] += 1
        why_not = (
            self._grow(stage, times, detail)
            if cause == OUT_OF_MEMORY
            else given_up(cause, times, self.resources.retries, detail)
        )
        if why_not is not None:
            self._fail(stage, why_not)
            return
        wait = 0.0 if cause == CRASHED else delay(times)
        with_share = f" with {self.shares.of(stage)}" if cause == OUT_OF_MEMORY else ""
        when = f" in {wait:g} s" if wait else ""
        self.notes.append(f"{stage.name}: {WHAT[cause]}; restarted{with_share}{when} ({times}): {detail}")
        self.hold(stage, wait)

    def _grow(self, stage: Stage, times: int, detail: str) -> str | None:
        """Give a stage that ran out of memory the next larger share; return why it is given up, None when it is not.

        A stage on the CPU keeps its share: it is restarted when others may have given memory back.
        """
        slot = self.shares.of(stage)
        if self.shares.grow(stage) or (slot.gpus == 0 and times <= self.resources.retries):
            return None
        return f"out of memory {times} times, most recently with {slot}: {detail}"

    def _learn(self, stage: Stage, taken: int) -> None:
        """Take in what a stage took that had a GPU to itself."""
        before = self.shares.of(stage)
        self.shares.learn(stage, taken)
        slot = self.shares.of(stage)
        if slot != before:
            self.notes.append(f"{stage.name} takes {taken / 2**30:.1f} GiB of GPU memory: {slot} for each of its kind")

    def hold(self, stage: Stage, seconds: float) -> None:
        """Let a stage wait so long before it may run."""
        self.graph.hold(stage.key)
        heapq.heappush(self.delayed, (time.monotonic() + seconds, stage.key))

    def _fail(self, stage: Stage, error: str) -> None:
        self.graph.fail(stage.key, error)
        self.notes.append(f"{stage.name} failed: {error}")
