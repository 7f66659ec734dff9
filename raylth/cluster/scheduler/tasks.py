"""Stages that train nothing run as Ray tasks, beside Tune's trials: matches, lines, planes, ensembles, overlaps, analyses.

A task is submitted when its networks exist and there is room for it that no training waits for, with the references of its
networks in the object store. What its end means is settled by the searcher, as for a trial.
"""

import time
import uuid
from typing import TYPE_CHECKING, Any

import ray

from raylth.cluster.failures import cause_of
from raylth.cluster.scheduler.idle_workers import IdleWorkers
from raylth.cluster.scheduler.places import Place, Places
from raylth.cluster.slots import Slot, asks_too_much
from raylth.cluster.worker.payload import Work
from raylth.cluster.worker.stage_task import run_task
from raylth.stages import Graph, Stage, kind_of

if TYPE_CHECKING:
    from raylth.cluster.scheduler.graph_searcher import GraphSearcher
    from raylth.cluster.worker.payload import Shared

__all__ = ["StageTasks"]


class StageTasks:
    """Submits the ready stages of a graph that train nothing, and takes their ends to the searcher."""

    def __init__(self, searcher: "GraphSearcher", shared: "Shared", places: Places, idle_workers: IdleWorkers) -> None:
        self.searcher, self.shared, self.places, self.idle_workers = searcher, shared, places, idle_workers
        self.run, self.reference = uuid.uuid4().hex, ray.put(shared)
        self.running: dict[Any, tuple[Stage, Place]] = {}  # reference of the result -> stage and where it runs
        self.graph.split(self.is_trial)
        self.task = ray.remote(max_retries=0)(run_task)  # what a lost worker leads to depends on why it was lost

    @staticmethod
    def is_trial(stage: Stage) -> bool:
        """Whether a stage is a trial: a training."""
        return stage.epochs > 0

    @property
    def graph(self) -> Graph:
        """The searcher's graph."""
        return self.searcher.graph

    def asked(self) -> list[tuple[str, Slot, int]]:
        """Return what the tasks take, or keep for the next one: kind, share, and number of workers."""
        return [(kind, slot, 1) for kind, slot in self.places.held()]

    def come_first(self) -> bool:
        """Whether a task is ready that comes before the first ready training: arms wait for what it makes."""
        task, training = self.graph.first_ready(trial=False), self.graph.first_ready(trial=True)
        return task is not None and training is not None and _comes_before(task.kind, training)

    @property
    def is_busy(self) -> bool:
        """Whether a task runs, or a place is being made for one."""
        return bool(self.running) or self.places.is_made()

    def hold_back(self) -> bool:
        """Whether no training is to start now, since a task that comes before it waits for what the training would take.

        Tune would give the training the worker that has just become idle, time and again. A task for which the machines
        that are there have no room holds nothing back: it waits for one that is still to come.
        """
        training = self.graph.first_ready(trial=True)
        if training is None:
            return False
        waiting = [(place.kind, place.slot) for place in self.places.waiting()]
        for stage in self.graph.first_of_each_kind(trial=False):
            slot = self.searcher.shares.of(stage)
            if self._is_within_half(slot, training):
                waiting.append((stage.kind, slot))
        first = [slot for kind, slot in waiting if _comes_before(kind, training)]
        return any(not asks_too_much([(slot, 1)], self.searcher.present) for slot in first)

    def wait(self, seconds: float) -> None:
        """Wait until a task has ended, at most so long."""
        self.idle_workers.take_event()
        if self.running:
            ray.wait(list(self.running), num_returns=1, timeout=seconds)
        else:
            time.sleep(seconds)

    def turn(self) -> None:
        """Take the ends of the tasks that have ended; end an idle worker where one may hold what a task waits for."""
        if self.running:
            ended, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
            for reference in ended:
                self._take(reference)
        self.places.turn()
        if self.places.is_short():
            self.idle_workers.end_one()

    def submit(self) -> None:
        """Submit the stages that are ready and that there is room for; one that waits holds back those like it only."""
        waiting: set[str] = set()
        while left := [each for each in self.graph.first_of_each_kind(trial=False) if each.kind not in waiting]:
            stage, slot = left[0], self.searcher.shares.of(left[0])
            place = self.places.take(stage.kind, slot) if self._may_start(stage, slot) else None
            if place is None:
                waiting.add(stage.kind)
            else:
                self.graph.take([stage])
                self._submit(stage, place)

    def _submit(self, stage: Stage, place: Place) -> None:
        work = Work([stage.key], place.slot.cpus, place.slot.gpus)
        references = {key: self.shared.holder(key).references.remote(key) for key in stage.parents.values()}
        task = self.task.options(name=f"raylth {stage.kind}", **place.options)
        reference = task.remote(self.run, [self.reference], work, references)
        self.running[reference] = stage, place

    def _take(self, reference: Any) -> None:
        """Take a task's end to the searcher."""
        stage, place = self.running.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            self.places.give_back(place, is_sound=False)
            raised = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            detail = (str(raised).strip().splitlines() or [""])[0]
            self.searcher.lost([stage], cause_of(error), f"{type(raised).__name__}: {detail}")
            return
        self.places.give_back(place)
        self.searcher.ended([stage], place.slot, result)

    def _may_start(self, stage: Stage, slot: Slot) -> bool:
        """Whether there is room for a task now, beside the first training that waits for room, unless that comes after it."""
        asked = [*self.searcher.trials(), *((each, 1) for each in (*self.places.busy(), slot))]
        if asks_too_much(asked, self.searcher.machines) and len(asked) > 1:
            return False
        training = self.graph.first_ready(trial=True)
        if training is None:
            return True
        if _comes_before(stage.kind, training):
            return self._is_within_half(slot, training)
        room = self.searcher.shares.of(training), self.searcher.shares.fewest(training)
        return not asks_too_much([*asked, room], self.searcher.machines)

    def _is_within_half(self, slot: Slot, training: Stage) -> bool:
        """Whether one more task that arms wait for leaves half of the machines to trainings; one alone always may."""
        before = [(place.slot, 1) for stage, place in self.running.values() if _comes_before(stage.kind, training)]
        half = {resource: total / 2 for resource, total in self.searcher.machines.items()}
        return not before or not asks_too_much([*before, (slot, 1)], half)


def _comes_before(kind: str, training: Stage) -> bool:
    return kind_of(kind).rank < kind_of(training.kind).rank
