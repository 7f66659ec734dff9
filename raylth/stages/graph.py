"""The state of a plan while it runs: which stages wait, may run, run, are done, diverged, failed or are blocked."""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from raylth.stages.stage import Stage

__all__ = ["Graph"]


class Graph:
    """Stages by key with their states; plain bookkeeping, no threads and no clock.

    `done` holds the keys of artefacts that exist already: a stage is done when all that it produces is there. Stages
    become ready in the order in which they are given. A stage that failed or diverged blocks its descendants and
    nothing else. `diverged` names stages that are known to, with the reason.
    """

    def __init__(self, stages: Iterable[Stage], done: Iterable[str] = (), diverged: Mapping[str, str] | None = None) -> None:
        self.stages = {stage.key: stage for stage in stages}
        self.errors: dict[str, str] = {}  # stage key -> last error line, or how it diverged
        self.ended: list[str] = []  # keys in the order in which stages ended; one that ran again stands there twice
        self.num_computed = 0  # stages that this run computed itself
        self.incidents: Counter[str] = Counter()  # cause -> how often a worker ended for it
        self.made_from: dict[str, str] = {}  # artefact that the store held -> SHA-256 of its data
        self.blockers: dict[str, str] = {}  # blocked stage key -> the failed stage's key
        self._rank = {key: rank for rank, key in enumerate(self.stages)}
        self._producer = {key: stage.key for stage in self.stages.values() for key in stage.produces}
        existing = set(done)
        self.states = {
            key: "done" if existing.issuperset(stage.produces) else "waiting" for key, stage in self.stages.items()
        }
        self.cached = frozenset(key for key, state in self.states.items() if state == "done")
        self.ended += [key for key, state in self.states.items() if state == "done"]
        self._children: dict[str, list[str]] = {key: [] for key in self.stages}
        self._missing: dict[str, set[str]] = {}
        for key, stage in self.stages.items():
            parents = self.parent_stages(stage)
            for parent in parents:
                self._children[parent].append(key)
            self._missing[key] = {parent for parent in parents if self.states[parent] != "done"}
        self._keys = list(self.stages)
        self._is_trial: Callable[[Stage], bool] = lambda stage: stage.epochs > 0
        self._ready: dict[tuple[bool, str], list[int]] = {}  # whether stages are trials, and their kind -> heap of ranks
        self.split(self._is_trial)
        for key, reason in (diverged or {}).items():
            self.diverge(key, reason)

    def split(self, is_trial: Callable[[Stage], bool]) -> None:
        """Say which stages `next_ready` and `first_ready` count as trials; by itself, those that train."""
        self._is_trial, self._ready = is_trial, {}
        for key in self.stages:
            if self._is_ready(key):
                self._push(key)

    def producer(self, key: str) -> Stage:
        """Return the stage that publishes an artefact."""
        return self.stages[self._producer[key]]

    def parent_stages(self, stage: Stage) -> set[str]:
        """Return the keys of the stages that produce a stage's parents."""
        return {self._producer[parent] for parent in stage.parents.values()}

    def next_ready(self, trial: bool | None = None) -> Stage | None:
        """Take the first stage whose parents are all done and mark it running; None when there is none.

        `trial` says whether only stages are meant that run as trials, or only the others.
        """
        stage = self.first_ready(trial)
        if stage is not None:
            heapq.heappop(self._heap(stage))
            self.states[stage.key] = "running"
        return stage

    def first_ready(self, trial: bool | None = None) -> Stage | None:
        """Return the stage that `next_ready` would take, without taking it."""
        return next(iter(self.first_of_each_kind(trial)), None)

    def first_of_each_kind(self, trial: bool | None = None) -> list[Stage]:
        """Return the first stage that may run now of each kind, in the order in which they would be taken."""
        heaps = [heap for (is_trial, _), heap in self._ready.items() if trial in (None, is_trial)]
        for heap in heaps:
            while heap and not self._is_ready(self._keys[heap[0]]):
                heapq.heappop(heap)
        return [self.stages[self._keys[rank]] for rank in sorted(heap[0] for heap in heaps if heap)]

    @property
    def num_ready(self) -> int:
        """How many stages may run now."""
        return sum(map(len, self._ready.values()))

    def take_leaves(self, like: Stage, most: int, accept: Callable[[Stage], bool]) -> list[Stage]:
        """Take up to `most` further stages while the next one is of that kind and accepted, if nothing waits for any."""
        taken: list[Stage] = []
        if self._children[like.key]:
            return taken
        ready = self._heap(like)
        while ready and len(taken) < most:
            key = self._keys[ready[0]]
            if self._children[key] or not accept(self.stages[key]):
                break
            heapq.heappop(ready)
            if self._is_ready(key):
                self.states[key] = "running"
                taken.append(self.stages[key])
        return taken

    def ready(self) -> list[Stage]:
        """List the stages that may run now, in the order in which they would be taken."""
        keys = (self._keys[rank] for rank in sorted(set(itertools.chain(*self._ready.values()))))
        return [self.stages[key] for key in keys if self._is_ready(key)]

    def take(self, stages: Iterable[Stage]) -> None:
        """Take stages that are ready, out of turn, and mark them running."""
        ranks = {self._rank[stage.key] for stage in stages}
        for rank in ranks:
            self.states[self._keys[rank]] = "running"
        for kind, ready in self._ready.items():
            self._ready[kind] = [rank for rank in ready if rank not in ranks]
            heapq.heapify(self._ready[kind])

    def finish(self, key: str) -> None:
        """Mark a running stage done; its children may become ready."""
        self.states[key] = "done"
        self.ended.append(key)
        for child in self._children[key]:
            self._missing[child].discard(key)
            if self._is_ready(child):
                self._push(child)

    def hold(self, key: str) -> None:
        """Put a running stage back among those that wait, until `retry` lets it run."""
        self._wait(key)

    def retry(self, key: str) -> None:
        """Let a stage that ran, or is held, run again when its parents are there."""
        self._wait(key)
        if self._is_ready(key):
            self._push(key)

    def _wait(self, key: str) -> None:
        """Put a stage among those that wait, or that are blocked, when a parent failed while it ran."""
        if self.states[key] == "blocked":
            return
        self.states[key] = "waiting"
        for parent in self._missing[key]:
            if self.states[parent] in ("failed", "diverged", "blocked"):
                self._block(key, self.blockers.get(parent, parent))

    def lose(self, artefact: str) -> Stage:
        """Note that an artefact was lost: the stage that produces it must run again.

        Children that wait continue waiting for it; returns the stage.
        """
        key = self._producer[artefact]
        if self.states[key] == "done":
            self.states[key] = "waiting"
            for child in self._children[key]:
                self._missing[child].add(key)
            if self._is_ready(key):
                self._push(key)
        return self.stages[key]

    def fail(self, key: str, error: str) -> None:
        """Mark a running stage failed with its last error line, and everything below it blocked."""
        self._end(key, "failed", error)

    def diverge(self, key: str, reason: str) -> None:
        """Mark a stage whose training diverged, which is its result, and everything below it blocked."""
        self._end(key, "diverged", reason)

    def _end(self, key: str, state: str, error: str) -> None:
        self.states[key] = state
        self.errors[key] = error
        self.ended.append(key)
        for child in self._children[key]:
            self._block(child, key)

    def _block(self, key: str, blocker: str) -> None:
        """Block a stage that waits, and everything below it."""
        below = [key]
        while below:
            key = below.pop()
            if self.states[key] == "waiting":
                self.states[key] = "blocked"
                self.blockers[key] = blocker
                below += self._children[key]

    @property
    def finished(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not any(state in ("waiting", "running") for state in self.states.values())

    def count(self) -> dict[str, Counter[str]]:
        """Return, per kind of stage, how many are in each state."""
        counts: dict[str, Counter[str]] = {}
        for key, stage in self.stages.items():
            counts.setdefault(stage.kind, Counter())[self.states[key]] += 1
        return counts

    def _heap(self, stage: Stage) -> list[int]:
        return self._ready.setdefault((self._is_trial(stage), stage.kind), [])

    def _push(self, key: str) -> None:
        heapq.heappush(self._heap(self.stages[key]), self._rank[key])

    def _is_ready(self, key: str) -> bool:
        return self.states[key] == "waiting" and not self._missing[key]
