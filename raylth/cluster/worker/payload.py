"""What every worker of a run is given, and the context that it makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from raylth.cluster.worker.checkpoint_cache import CheckpointReader, holder_of
from raylth.store import Store

if TYPE_CHECKING:
    from raylth.core.training.data_parallel import Team
    from raylth.stages import Context

__all__ = ["Shared"]


@dataclass(frozen=True)
class Shared:
    """What all trials of a run share: handles, references and paths, never tensors."""

    root: str
    stages: dict[str, dict[str, Any]]  # key -> `Stage.to_dict`
    dataset: list[Any]  # [reference to the Dataset in the object store]
    data_sha256: str
    checkpoints: list[Any]
    errors: str  # folder for the tracebacks of failed stages
    evaluate_every: int
    state_every: int
    state_seconds: float
    versions: dict[str, str]  # what every worker's machine must run
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
