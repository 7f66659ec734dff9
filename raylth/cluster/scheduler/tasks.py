"""Stages that train nothing run as Ray tasks, beside Tune's trials: matches, lines, planes, ensembles, overlaps, analyses.

A task is submitted when its networks exist and there is room for it that no training waits for, with the references of its
networks in the object store. What its end means is settled by the searcher, as for a trial.
"""

import time
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ray

from raylth.cluster.failures import cause_of
from raylth.cluster.slots import TASK_RESOURCE, Slot, asks_too_much
from raylth.cluster.worker.stage_task import run_task
from raylth.stages import Graph, Stage, kind_of

if TYPE_CHECKING:
    from raylth.cluster.scheduler.graph_searcher import GraphSearcher
    from raylth.cluster.worker.payload import Shared

__all__ = ["StageTasks"]


class StageTasks:
    """Submits the ready stages of a graph that train nothing, and takes their ends to the searcher.

    It is for a Ray of our own, where this driver alone decides what runs: their CPUs are counted here. In Ray's books a
    worker that waits for its next training keeps its share, and would have to be ended for a task of a second.
    """

    def __init__(self, searcher: "GraphSearcher", shared: "Shared") -> None:
        self.searcher, self.shared = searcher, shared
        self.run, self.reference = uuid.uuid4().hex, ray.put(shared)
        self.running: dict[Any, tuple[Stage, Slot]] = {}  # reference of the result -> stage and its share
        self.graph.split(self.is_trial)
        self.task = ray.remote(max_retries=0)(run_task)  # what a lost worker leads to depends on why it was lost

    def is_trial(self, stage: Stage) -> bool:
        """Whether a stage is a trial: a training, or one with a share of a GPU.

        Ray ends a task's process with its first use of a GPU, and each would have to import torch and open the device anew; a
        trial's worker keeps both.
        """
        return stage.epochs > 0 or self.searcher.resources.of(stage.kind).gpus != 0

    @property
    def graph(self) -> Graph:
        """The searcher's graph."""
        return self.searcher.graph

    def asked(self) -> list[tuple[str, Slot, int]]:
        """Return what the tasks take that have not ended: kind, share, and number of workers."""
        return [(stage.kind, slot, 1) for stage, slot in self.running.values()]

    def come_first(self) -> bool:
        """Whether a task is ready that comes before the first ready training: arms wait for what it makes."""
        task, training = self.graph.first_ready(trial=False), self.graph.first_ready(trial=True)
        return task is not None and training is not None and kind_of(task.kind).rank < kind_of(training.kind).rank

    def wait(self, seconds: float) -> None:
        """Wait until a task has ended, at most so long."""
        if self.running:
            ray.wait(list(self.running), num_returns=1, timeout=seconds)
        else:
            time.sleep(seconds)

    def take_ends(self) -> None:
        """Take the ends of the tasks that have ended."""
        if self.running:
            ended, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
            for reference in ended:
                self._take(reference)

    def submit(self) -> None:
        """Submit the stages that are ready and that there is room for."""
        while (stage := self.graph.first_ready(trial=False)) is not None:
            slot = self.searcher.shares.of(stage)
            if not self._may_start(stage, slot):
                return
            self.graph.take([stage])
            self._submit(stage, slot)

    def _submit(self, stage: Stage, slot: Slot) -> None:
        config = {
            "cpus": slot.cpus, "gpus": 0.0, "workers": 1, "steps": None, "engine": "eager",
        }  # fmt: skip
        references = {key: self.shared.holder(key).references.remote(key) for key in stage.parents.values()}
        asked = self.task.options(num_cpus=0, resources={TASK_RESOURCE: 1}, name=f"raylth {stage.kind}")
        reference = asked.remote(self.run, [self.reference], stage.key, config, references)
        self.running[reference] = stage, slot

    def _take(self, reference: Any) -> None:
        """Take a task's end to the searcher."""
        stage, slot = self.running.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            raised = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            detail = (str(raised).strip().splitlines() or [""])[0]
            self.searcher.lost([stage], cause_of(error), f"{type(raised).__name__}: {detail}")
            return
        self.searcher.ended([stage], slot, result)

    def _may_start(self, stage: Stage, slot: Slot) -> bool:
        """Whether there is room for a task now, beside the first training that waits for room, unless that comes after it."""
        asked = [(each, fewest) for _, each, fewest in self.searcher.asked()]
        if asks_too_much([*asked, (slot, 1)], self.searcher.machines) and asked:
            return False
        training = self.graph.first_ready(trial=True)
        if training is None:
            return True
        if kind_of(stage.kind).rank < kind_of(training.kind).rank:  # arms wait for it, and others can be trained meanwhile
            mine = self._cpus([(slot, 1), *((each, 1) for _, each, _ in self.asked())])
            return not self.running or mine <= self.searcher.machines.get("CPU", 0.0) / 2
        wanted = self.searcher.shares.of(training)
        cpus = self._cpus([*asked, (slot, 1), (wanted, self.searcher.shares.fewest(training))])
        return cpus <= self.searcher.machines.get("CPU", 0.0)

    @staticmethod
    def _cpus(asked: Iterable[tuple[Slot, int]]) -> float:
        return sum(slot.cpus * workers for slot, workers in asked)
