"""The Tune searcher that knows what depends on what: it suggests a stage when that stage's own parents exist."""

import contextlib
import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from raylth.cluster.failures import CRASHED, NOT_STARTED, OUT_OF_MEMORY, PREEMPTED, WHAT, delay, given_up, published
from raylth.cluster.scheduler.packing import Packs
from raylth.cluster.slots import Shares, Slot, asks_too_much
from raylth.config.resources import ResourcesConfig
from raylth.stages import Graph, Stage
from raylth.store import BrokenArtefact, Store

__all__ = ["GraphSearcher"]

TRY_STEPS = 5  # of a training, to see what memory it takes; it goes on from there
TRY_DELAY = 1.0  # seconds until others of its kind are looked at again
TEAM_DELAY = 1.0  # seconds until a training that needs several workers is looked at again
BATCH_SECONDS = 2.0  # of stages that go in one trial
MOST_CANCELLED_STARTS = 20  # of one stage, before they count as crashes
MOST_ELSEWHERE_DELAY = 60.0
ELSEWHERE_DELAY = 2.0  # seconds until a stage that another sweep computes is asked for again


class GraphSearcher(Searcher):
    """Walks a graph of stages for Tune. A trial receives keys and its share of a machine, nothing else.

    One key, as a rule. Stages that take less than a moment and that nothing waits for come in batches, since a trial costs
    Tune some hundredths of a second.

    `suggest` returns None while everything that is left waits for a running stage, for room or for its time, so no trial
    ever holds resources while it waits, and `FINISHED` when the whole graph is. What a worker's end means depends on its
    cause:

    - preempted: started again, however often;
    - out of memory: started again with the next larger share of a GPU, up to a whole one; a pack, in smaller packs;
    - the store does not answer: started again ten times, after longer and longer waits;
    - crashed: started again `resources.retries` times; a pack, in halves until a stage is by itself;
    - a stage's own error: failed at once, it would happen again.
    """

    def __init__(
        self,
        graph: Graph,
        store: Store,
        resources: ResourcesConfig,
        gpus: Sequence[tuple[str, int]] = (),
        machines: Mapping[str, float] | None = None,
        may_grow: bool = True,
    ) -> None:
        super().__init__()
        self.graph, self.store, self.resources = graph, store, resources
        self.shares = Shares(resources, store, list(gpus))
        self.machines = dict(machines or {})  # resource -> how much of it all have, also those that may come
        self.may_grow = may_grow  # whether more may come than that
        self.packs = Packs(resources, store, self.shares.name, self.machines)
        self.running: dict[str, tuple[list[Stage], Slot]] = {}  # trial -> its stages, in the order in which it runs them
        self.began: dict[str, float] = {}  # trial -> when it was suggested
        self.seconds: dict[str, float] = {}  # kind -> what a stage of it takes, a running mean
        self.causes: dict[str, tuple[str, str]] = {}  # trial -> why its worker ended, and the error; TrialScheduler writes it
        self.times: dict[tuple[str, str], int] = {}  # (stage key, cause) -> how often
        self.tried: dict[str, Stage] = {}  # trial -> the stage whose first steps it runs, to see what memory they take
        self.packed: set[str] = set()  # trials that train their stages as one program
        self.measuring: dict[str, tuple[Stage, Slot]] = {}  # trial -> the stage whose class it measures, and its share
        self.elsewhere: Counter[str] = Counter()  # stage key -> how often another sweep was found at it
        self.delayed: list[tuple[float, str]] = []  # heap of (when, stage key)
        self.on_turn: Callable[[], None] = lambda: None  # while all is held, Tune's loop asks here and turns nowhere else
        self.is_closed = False  # no stage is started any more
        self.notes: list[str] = []  # what a person should be told, in order

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its inputs for a restore, which the store makes needless

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is text
        """Return the next stage that may run, None to be asked again later, FINISHED at the end."""
        self.on_turn()
        if self.is_closed:
            return None if self.running else Searcher.FINISHED
        if self._one_waits():
            return None
        while self.delayed and self.delayed[0][0] <= time.monotonic():
            self.graph.retry(heapq.heappop(self.delayed)[1])
        while (stage := self.graph.next_ready()) is not None:
            is_tried = self.shares.must_be_tried(stage)
            if is_tried and any(self.shares.same_class(stage, other) for other in self.tried.values()):
                self._hold(stage, TRY_DELAY)  # until it is known what the other took
                continue
            share = self.shares.of(stage)
            if share.workers > 1 and self._num_teams(share) >= self.packs.room(share):
                self._hold(stage, TEAM_DELAY)  # its workers would wait for those that train now
                continue
            size = 1 if is_tried or share.workers > 1 else self.packs.size(stage, share)
            if not self.may_grow and not self._has_room(stage, share if size == 1 else self.shares.whole(stage)):
                self.graph.retry(stage.key)
                return None
            measure = size is None and self.packs.must_be_measured(stage, share)
            pack = self._pack_of(stage, share, size) if size and size > 1 else []
            is_alone = is_tried or size is None or share.workers > 1
            others = pack or ([] if is_alone else self._more_like(stage, share))
            slot = self.shares.whole(stage) if measure or pack else share
            self.running[trial_id], self.began[trial_id] = ([stage, *others], slot), time.monotonic()
            if is_tried:
                self.tried[trial_id] = stage
            if pack:
                self.packed.add(trial_id)
            if measure:
                self.measuring[trial_id] = stage, share
            return {
                "stages": [each.key for each in (stage, *others)],
                "cpus": slot.cpus,
                "gpus": slot.gpus,
                "workers": slot.workers,
                "min_workers": self.shares.fewest(stage),
                "steps": TRY_STEPS if is_tried else None,
                "pack": bool(pack),
                "measure": self._example_of(stage, share).key if measure else None,
                **(self.packs.to_measure(stage, share) if measure else {"engine": self.packs.engine(stage, share)}),
            }
        return Searcher.FINISHED if self.graph.finished else None

    def asked(self) -> list[tuple[str, Slot, int]]:
        """Return what the stages that were suggested and have not ended take: kind, share, and the fewest workers."""
        return [(stages[0].kind, slot, self.shares.fewest(stages[0])) for stages, slot in self.running.values()]

    def see(self, alive: Mapping[str, float]) -> None:
        """Take in what the machines have that are there now: more may have come than could be known at the start."""
        for resource in self.machines:
            self.machines[resource] = max(self.machines[resource], alive[resource])

    def _one_waits(self) -> bool:
        """Whether more was suggested than all machines together, also those that may come, have room for."""
        return asks_too_much(((slot, fewest) for _, slot, fewest in self.asked()), self.machines)

    def _has_room(self, stage: Stage, slot: Slot) -> bool:
        """Whether the machines have room for a stage now; chosen later, it may be another that matters more."""
        asked = [(each, each.workers) for _, each in self.running.values()]
        return not asked or not asks_too_much([*asked, (slot, self.shares.fewest(stage))], self.machines)

    def has_team(self) -> bool:
        """Whether several workers train a network now, or wait to."""
        return any(slot.workers > 1 for _, slot in self.running.values())

    def _num_teams(self, slot: Slot) -> int:
        return sum(other == slot for _, other in self.running.values())

    def _pack_of(self, stage: Stage, slot: Slot, size: int) -> list[Stage]:
        """Take the trainings that go with a stage in one program; none for a stage that met with trouble before."""
        if not self._is_fresh(stage):
            return []
        ready = self.graph.ready()
        alike = [other for other in ready if self.packs.go_together(stage, other, size) and self._goes_with(other, slot)]
        epochs = stage.epochs + sum(other.epochs for other in ready) + self._epochs_left()
        others = alike[: self.packs.share(self.shares.whole(stage), size, 1 + len(alike), epochs / stage.epochs) - 1]
        self.graph.take(others)
        return others

    def _example_of(self, stage: Stage, share: Slot) -> Stage:
        """Return the training by which it is measured how many like a stage go together."""
        states = self.graph.states
        left = [other for other in self.graph.stages.values() if other.epochs and states[other.key] in ("waiting", "running")]
        return self.packs.example(
            other for other in left if self.packs.same_class(stage, share, other, self.shares.of(other))
        )

    def _epochs_left(self) -> float:
        """Return how many epochs are left to the trainings that run, as far as is known."""
        left = 0.0
        for trial, (stages, _) in self.running.items():
            seconds = len(stages) * self.seconds.get(stages[0].kind, 0.0)
            part = (time.monotonic() - self.began[trial]) / seconds if seconds else 0.0
            left += max(0.0, 1.0 - part) * sum(stage.epochs for stage in stages)
        return left

    def _more_like(self, stage: Stage, slot: Slot) -> list[Stage]:
        """Take what goes with a stage in one trial: nothing when it takes long, or met with trouble before."""
        seconds = self.seconds.get(stage.kind)
        if seconds is None or not self._is_fresh(stage):
            return []
        fair = self.graph.num_ready / (2 * len(self.running) + 2)  # leave enough for the others, to the end
        most = int(min(BATCH_SECONDS / max(seconds, 1e-3), fair)) - 1
        return self.graph.take_leaves(stage, most, lambda other: self._goes_with(other, slot))

    def _goes_with(self, stage: Stage, slot: Slot) -> bool:
        """Whether a stage may run in a trial that has this slot."""
        return self._is_fresh(stage) and not self.shares.must_be_tried(stage) and self.shares.of(stage) == slot

    def _is_fresh(self, stage: Stage) -> bool:
        """Whether a stage never met with trouble, nor is it what is left of packs that crashed."""
        is_suspect = self.packs.suspects.get(stage.key) == 1
        return not is_suspect and not any((stage.key, cause) in self.times for cause in WHAT if cause != NOT_STARTED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the ends of a trial's stages into the graph."""
        stages, slot = self.running.pop(trial_id)
        del self.began[trial_id]
        self.tried.pop(trial_id, None)
        measuring = self.measuring.pop(trial_id, None)
        if self.is_closed and not error and result is None:  # taken back before a worker had it
            for stage in stages:
                self.graph.retry(stage.key)
            return
        if not error and result is not None:
            self.notes += self.packs.news(result.get("notes", ()))
            if "ran_out" in result:
                self.graph.incidents[OUT_OF_MEMORY] += 1
                self.notes += self.packs.ran_out(stages[0], slot, result["ran_out"], result["fits"])
            for stage, ended in zip(stages, result["outcomes"], strict=True):
                self._ended(stage, slot, ended)
            return
        cause, detail = self.causes.pop(trial_id, (CRASHED, "no reason known"))
        if measuring is not None:  # no stage is to blame
            self.packs.forget(*measuring, for_good=cause not in (PREEMPTED, NOT_STARTED))
            self.graph.incidents[cause] += cause != NOT_STARTED
            self.graph.retry(stages[0].key)
            return
        if trial_id in self.packed and cause in (OUT_OF_MEMORY, CRASHED):
            self._pack_ended(stages, slot, cause, detail)
        else:
            self._worker_ended(stages, cause, detail)

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
            self._hold(stage, wait * random.uniform(0.5, 1.0))  # two that met do not meet again
        elif result["outcome"] == "diverged":
            self.graph.diverge(stage.key, result["error"])
            self.notes.append(f"{stage.name} diverged: {result['error']}")
        elif result["outcome"] == "broken":
            self._lose(stage, result["broken"], result["error"])
        elif result["outcome"] in WHAT:
            self._worker_ended([stage], result["outcome"], result["error"])
        else:
            self._fail(stage, result["error"])

    def _worker_ended(self, stages: list[Stage], cause: str, detail: str) -> None:
        """Take in that a worker ended at the first of its stages that is not in the store; the others are not to blame."""
        ahead = [stage for stage in stages if not self._take_published(stage)]
        for stage in ahead[1:]:
            self.graph.retry(stage.key)
        if ahead:
            self._met(ahead[0], cause, detail)
        elif cause != NOT_STARTED:
            self.graph.incidents[cause] += 1  # just after publishing

    def _pack_ended(self, stages: list[Stage], slot: Slot, cause: str, detail: str) -> None:
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
            self._hold(stage, delay(times))
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
        self.notes.append(f"{stage.name}: {WHAT[cause]}; started again{with_share}{when} ({times}): {detail}")
        self._hold(stage, wait)

    def _grow(self, stage: Stage, times: int, detail: str) -> str | None:
        """Give a stage that ran out of memory the next larger share; return why it is given up, None when it is not.

        A stage on the CPU keeps its share: it is started again when others may have given memory back.
        """
        slot = self.shares.of(stage)
        if self.shares.grow(stage) or (slot.gpus == 0 and times <= self.resources.retries):
            return None
        return f"out of memory {times} times, at last with {slot}: {detail}"

    def _learn(self, stage: Stage, taken: int) -> None:
        """Take in what a stage took that had a GPU to itself."""
        before = self.shares.of(stage)
        self.shares.learn(stage, taken)
        slot = self.shares.of(stage)
        if slot != before:
            self.notes.append(f"{stage.name} takes {taken / 2**30:.1f} GiB of GPU memory: {slot} for each of its kind")

    def _hold(self, stage: Stage, seconds: float) -> None:
        self.graph.hold(stage.key)
        heapq.heappush(self.delayed, (time.monotonic() + seconds, stage.key))

    def _fail(self, stage: Stage, error: str) -> None:
        self.graph.fail(stage.key, error)
        self.notes.append(f"{stage.name} failed: {error}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore intermediate results: a trial reports once."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the store is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the store is the state."""
