"""Stage `dense`: a seed -> theta(0), theta(k) at every asked epoch, theta(T)."""

from raylth.stages.arrays import state_arrays
from raylth.stages.context import Context
from raylth.stages.stage import Artefact, Stage
from raylth.stages.training import fit, new_network

__all__ = ["dense"]


def dense(stage: Stage, context: Context) -> dict[str, Artefact]:
    """Train a network from its initialisation and publish its weights at each checkpoint epoch when it gets there.

    k counts completed epochs: checkpoint "0" is the untouched initialisation (design.md 2.1).
    """
    network = new_network(stage.settings, stage.settings["init_seed"], context.device)

    def keep(completed: int) -> None:
        key = stage.checkpoints.get(str(completed))
        if key is not None:
            context.publish(key, Artefact({"weights": state_arrays(network.state_dict())}, {"epochs": completed}))

    missing = [int(epoch) for epoch, key in stage.checkpoints.items() if not context.store.has(key)]
    keep(0)
    metrics = fit(network, stage, context, on_epoch=keep, not_beyond=min(missing, default=None))
    return {stage.key: Artefact({"weights": state_arrays(network.state_dict())}, metrics)}
