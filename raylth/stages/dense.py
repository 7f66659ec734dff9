"""Stage `dense`: a seed -> theta(0), theta(k) at every asked epoch, theta(T)."""

from raylth.stages.context import Context
from raylth.stages.stage import Artefact, Stage
from raylth.stages.training import fit, new_network, state_arrays

__all__ = ["dense"]


def dense(stage: Stage, context: Context) -> dict[str, Artefact]:
    """Train a network from its initialisation and keep its weights at each checkpoint epoch.

    k counts completed epochs: checkpoint "0" is the untouched initialisation (design.md 2.1).
    """
    network = new_network(stage.settings, stage.settings["init_seed"], context.device)
    artefacts: dict[str, Artefact] = {}

    def keep(completed: int) -> None:
        key = stage.checkpoints.get(str(completed))
        if key is not None:
            artefacts[key] = Artefact({"weights": state_arrays(network.state_dict())}, {"epochs": completed})

    keep(0)
    metrics = fit(network, stage.settings, context, on_epoch=keep)
    artefacts[stage.key] = Artefact({"weights": state_arrays(network.state_dict())}, metrics)
    return artefacts
