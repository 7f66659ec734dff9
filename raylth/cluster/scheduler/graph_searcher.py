"""The Tune searcher that knows what depends on what: it suggests a stage when that stage's own parents exist."""

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ray.tune.search import Searcher

from raylth.cluster.failures import CRASHED, NOT_STARTED, OUT_OF_MEMORY, PREEMPTED, WHAT
from raylth.cluster.scheduler.stage_ends import StageEnds
from raylth.cluster.scheduler.tasks import StageTasks
from raylth.cluster.slots import Slot, asks_too_much
from raylth.cluster.worker.payload import Work
from raylth.config.resources import ResourcesConfig
from raylth.stages import Graph, Stage
from raylth.store import Store

__all__ = ["GraphSearcher"]

TRY_STEPS = 5  # of a training, to measure its memory; it continues from there
TRY_DELAY = 1.0  # seconds until others of its kind are looked at again
TEAM_DELAY = 1.0  # seconds until a training that needs several workers is looked at again
BATCH_SECONDS = 2.0  # of stages that go in one trial
TASK_SECONDS = 0.1  # that tasks are waited for before the loop turns


class GraphSearcher(StageEnds, Searcher):
    """Walks a graph of stages for Tune. A trial receives keys and its share of a machine, nothing else.

    One key, as a rule. Stages that take less than a moment and that nothing waits for come in batches, since a trial costs
    Tune some hundredths of a second.

    `suggest` returns None while everything that is left waits for a running stage, for room or for its time, so no trial
    ever holds resources while it waits, and `FINISHED` when the whole graph is.
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
        Searcher.__init__(self)
        StageEnds.__init__(self, graph, store, resources, gpus, machines)
        self.may_grow = may_grow  # whether more may come than that
        self.present = dict(self.machines)  # resource -> how much of it the machines have that are there now
        self.running: dict[str, tuple[list[Stage], Slot]] = {}  # trial -> its stages, in the order in which it runs them
        self.began: dict[str, float] = {}  # trial -> when it was suggested
        self.causes: dict[str, tuple[str, str]] = {}  # trial -> why its worker ended, and the error; TrialScheduler writes it
        self.tried: dict[str, Stage] = {}  # trial -> the stage whose first steps it runs, to see what memory they take
        self.packed: set[str] = set()  # trials that train their stages as one program
        self.measuring: dict[str, tuple[Stage, Slot]] = {}  # trial -> the stage whose class it measures, and its share
        self.on_turn: Callable[[], None] = lambda: None  # while all is held, Tune's loop asks here and turns nowhere else
        self.is_closed = False  # no stage is started any more
        self.tasks: StageTasks | None = None  # run what trains nothing; without them it is suggested, too

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its inputs for a restore, which the store makes needless

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is text
        """Return the next stage that may run, None to be asked again later, FINISHED at the end.

        While only tasks run, this waits for them: Tune asks a searcher without trials no more than once a second.
        """
        while True:
            suggested = self._suggest(trial_id)
            if suggested is not None or self.running or self.tasks is None or not (self.tasks.is_busy or self.delayed):
                return suggested
            self.tasks.wait(TASK_SECONDS)

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self.on_turn()
        if self.tasks is not None:
            self.tasks.turn()
        if self.is_closed:
            return None if self.running or (self.tasks and self.tasks.running) else Searcher.FINISHED
        while self.delayed and self.delayed[0][0] <= time.monotonic():
            self.graph.retry(heapq.heappop(self.delayed)[1])
        if self.tasks is not None and self.tasks.come_first():
            self.tasks.submit()
        is_held = self._one_waits() or (self.tasks is not None and self.tasks.hold_back())
        suggested = None if is_held else self._next_trial(trial_id)
        if suggested is None and self.tasks is not None:
            self.tasks.submit()
        return Searcher.FINISHED if suggested is None and self.graph.finished else suggested

    def _next_trial(self, trial_id: str) -> dict[str, Any] | None:
        """Take the next stage, with others that go with it; None where none may start now."""
        while (stage := self.graph.next_ready(None if self.tasks is None else True)) is not None:
            is_tried = self.shares.must_be_tried(stage)
            if is_tried and any(self.shares.same_class(stage, other) for other in self.tried.values()):
                self.hold(stage, TRY_DELAY)  # until it is known what the other took
                continue
            share = self.shares.of(stage)
            if share.workers > 1 and self._num_teams(share) >= self.packs.room(share):
                self.hold(stage, TEAM_DELAY)  # its workers would wait for those that train now
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
            work = Work(
                [each.key for each in (stage, *others)],
                slot.cpus,
                slot.gpus,
                slot.workers,
                self.shares.fewest(stage),
                steps=TRY_STEPS if is_tried else None,
                pack=bool(pack),
                measure=self._example_of(stage, share).key if measure else None,
                **(self.packs.to_measure(stage, share) if measure else {"engine": self.packs.engine(stage, share)}),
            )
            return asdict(work)
        return None

    def asked(self) -> list[tuple[str, Slot, int]]:
        """Return what trials and tasks take that have not ended: kind, share, and the fewest workers."""
        kinds = [stages[0].kind for stages, _ in self.running.values()]
        trials = [(kind, *each) for kind, each in zip(kinds, self.trials(), strict=True)]
        return trials + (self.tasks.asked() if self.tasks else [])

    def trials(self) -> list[tuple[Slot, int]]:
        """Return what trials take that have not ended: share, and the fewest workers."""
        return [(slot, self.shares.fewest(stages[0])) for stages, slot in self.running.values()]

    def see(self, alive: Mapping[str, float]) -> None:
        """Update the resources of the machines: more may have joined since the start."""
        self.present = dict(alive)
        for resource in self.machines:
            self.machines[resource] = max(self.machines[resource], alive[resource])

    def _one_waits(self) -> bool:
        """Whether more was suggested than all machines together, also those that may come, have room for."""
        return asks_too_much(((slot, fewest) for _, slot, fewest in self.asked()), self.machines)

    def _has_room(self, stage: Stage, slot: Slot) -> bool:
        """Whether the machines have room for a stage now; chosen later, it may be another that matters more."""
        asked = [(each, each.workers) for _, each in self.running.values()]
        asked += [(each, 1) for _, each, _ in self.tasks.asked()] if self.tasks else []
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
        """Take the stages that run with one in the same trial: none when it takes long, or was interrupted before."""
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
            self.ended(stages, slot, result)
            return
        cause, detail = self.causes.pop(trial_id, (CRASHED, "unknown reason"))
        if measuring is not None:  # no stage is to blame
            self.packs.forget(*measuring, for_good=cause not in (PREEMPTED, NOT_STARTED))
            self.graph.incidents[cause] += cause != NOT_STARTED
            self.graph.retry(stages[0].key)
            return
        if trial_id in self.packed and cause in (OUT_OF_MEMORY, CRASHED):
            self.pack_ended(stages, slot, cause, detail)
        else:
            self.lost(stages, cause, detail)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore intermediate results: a trial reports once."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the store is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the store is the state."""
