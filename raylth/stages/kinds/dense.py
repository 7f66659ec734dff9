"""Stage `dense`: a seed -> theta(0), theta(k) at every asked epoch, theta(T)."""

from typing import Any

from raylth.stages.arrays import state_arrays
from raylth.stages.context import Context
from raylth.stages.kind import StageKind
from raylth.stages.network_rows import network_rows
from raylth.stages.settings import DenseSettings
from raylth.stages.stage import Artefact, Stage
from raylth.stages.training import Trainee, keep_checkpoints, new_network

__all__ = ["KIND", "dense"]


def dense(stage: Stage[DenseSettings], context: Context) -> Trainee:
    """Train a network from its initialisation and publish its weights at each checkpoint epoch when it gets there.

    k counts completed epochs: checkpoint "0" is the untouched initialisation.
    """
    network = new_network(stage.settings.model, stage.settings.init_seed, context.device)

    def finish(metrics: dict[str, Any]) -> dict[str, Artefact]:
        return {stage.key: Artefact({"weights": state_arrays(network.state_dict())}, metrics)}

    return keep_checkpoints(Trainee(stage, network, finish), context)


KIND = StageKind(
    name="dense",
    settings=DenseSettings,
    rank=10,
    prepare=dense,
    rows=network_rows,
    num_bytes=lambda stage, network: network.weights * len(stage.produces),
    feeds_arms=True,
)
