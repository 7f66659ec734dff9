"""What workers are given: once for a run, what all share; for each trial or task, its work."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from raylth.cluster.worker.checkpoint_cache import CheckpointReader, holder_of
from raylth.store import Store

if TYPE_CHECKING:
    from raylth.core.training.data_parallel import Team
    from raylth.core.training.engines.program import EngineName
    from raylth.stages import Context

__all__ = ["Handles", "SearchShared", "Shared", "Work"]


@dataclass(frozen=True)
class Work:
    """What a trial or a task is to do: stages, its share of a machine, and how. Tune is given it as a plain dictionary."""

    stages: list[str]  # keys
    cpus: int  # of each worker
    gpus: float
    workers: int = 1  # that train a network together
    min_workers: int = 1
    engine: "EngineName" = "eager"
    steps: int | None = None  # try so many steps, to see what memory they take
    pack: bool = False  # train the stages as one program
    measure: str | None = None  # the training by which it is measured how many go together: no stage is run
    sizes: list[int] | None = None  # of packs that are measured; None: any
    engines: list["EngineName"] = field(default_factory=list)  # that are measured


@dataclass(frozen=True)
class Handles:
    """What every worker of a run or of a search is given: handles, references and paths, never tensors."""

    root: str  # of the store
    dataset: list[Any]  # [reference to the Dataset in the object store]
    data_sha256: str
    versions: dict[str, str]  # what every worker's machine must run


@dataclass(frozen=True)
class SearchShared(Handles):
    """What all trials of a search share."""

    config: dict[str, Any]  # of the sweep, with its holdout
    every: int  # epochs between two reports


@dataclass(frozen=True)
class Shared(Handles):
    """What all trials and tasks of a run share."""

    stages: dict[str, dict[str, Any]]  # key -> `Stage.to_dict`
    checkpoints: list[Any]
    errors: str  # folder for the tracebacks of failed stages
    evaluate_every: int
    state_every: int
    state_seconds: float
    imports: tuple[str, ...] = ()  # modules that a worker imports before its first stage

    def holder(self, key: str) -> Any:
        """Return the actor that holds an artefact."""
        return holder_of(self.checkpoints, key)

    @property
    def epoch_counter(self) -> Any:
        """The actor that counts trained epochs."""
        return self.checkpoints[0]

    def context(
        self,
        device: str,
        store: Store,
        reader: CheckpointReader,
        progress: Callable[[str, int], None],
        stopping: Callable[[], bool],
        team: "Team | None" = None,
    ) -> "Context":
        """Put the data on a device, and return what stages run with there."""
        from raylth.core.training.data_parallel import ALONE
        from raylth.stages import make_context

        return make_context(
            store,
            ray.get(self.dataset[0]),
            data_sha256=self.data_sha256,
            device=device,
            load=reader.load,
            evaluate_every=self.evaluate_every,
            progress=progress,
            state_every=self.state_every,
            state_seconds=self.state_seconds,
            stopping=stopping,
            team=team or ALONE,
        )
