"""The Tune searcher that knows what depends on what: it suggests a stage when that stage's own parents exist."""

from typing import Any

from ray.tune.search import Searcher

from raylth.config import ResourcesConfig, Share
from raylth.stages import Graph, Stage
from raylth.store import Store

__all__ = ["GraphSearcher"]


class GraphSearcher(Searcher):
    """Walks a graph of stages for Tune. A trial receives a key and its share of a machine, nothing else.

    `suggest` returns None while everything that is left waits for a running stage, so no trial ever holds resources
    while it waits, and `FINISHED` when the whole graph is.
    """

    def __init__(self, graph: Graph, store: Store, resources: ResourcesConfig) -> None:
        super().__init__()
        self.graph, self.store, self.resources = graph, store, resources
        self.running: dict[str, Stage] = {}  # trial -> stage
        self.attempts: dict[str, int] = {}  # stage key -> how often its worker died
        self.notes: list[str] = []  # what a person should be told, in order

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its inputs for a restore, which the store makes needless

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is text
        """Return the next stage that may run, None to be asked again later, FINISHED at the end."""
        stage = self.graph.next_ready()
        if stage is None:
            return Searcher.FINISHED if self.graph.finished else None
        self.running[trial_id] = stage
        share: Share = getattr(self.resources, stage.kind)
        return {"stage": stage.key, "cpus": share.cpus, "gpus": share.gpus}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take a stage's end into the graph: done, failed, or to be run again."""
        stage = self.running.pop(trial_id)
        if error or result is None:
            self._worker_died(stage)
        elif result["broken"]:
            aside = self.store.set_aside(result["broken"])
            self.notes.append(f"{stage.name}: {result['error']}; set aside as {aside}, will be computed again")
            self.graph.retry(stage.key)
            self.graph.lose(result["broken"])
        elif result["error"]:
            self.graph.fail(stage.key, result["error"])
            self.notes.append(f"{stage.name} failed: {result['error']}")
        else:
            self.graph.finish(stage.key)

    def _worker_died(self, stage: Stage) -> None:
        attempts = self.attempts[stage.key] = self.attempts.get(stage.key, 0) + 1
        if all(self.store.has(key) for key in stage.produces):
            self.graph.finish(stage.key)  # it died after publishing
        elif attempts <= self.resources.retries:
            self.notes.append(f"{stage.name}: its worker process died; started again ({attempts})")
            self.graph.retry(stage.key)
        else:
            self.graph.fail(stage.key, f"its worker process died {attempts} times")
            self.notes.append(f"{stage.name} failed: its worker process died {attempts} times")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore intermediate results: a trial reports once."""

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the store is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the store is the state."""
