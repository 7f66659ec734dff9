"""Stage `mask`: a mask, perhaps with its network, from a file made elsewhere -> an artefact like one of IMP's."""

from raylth.core.masks import mask_sparsity, model_sparsity
from raylth.core.state import load_tensors
from raylth.core.training.loop import evaluate
from raylth.stages.arrays import state_arrays
from raylth.stages.context import Context
from raylth.stages.kind import StageKind
from raylth.stages.mask_files import read_mask_file
from raylth.stages.network_rows import network_rows
from raylth.stages.settings import MaskSettings
from raylth.stages.stage import Artefact, Stage
from raylth.stages.training import new_network

__all__ = ["KIND", "mask"]


def mask(stage: Stage[MaskSettings], context: Context) -> dict[str, Artefact]:
    """Take over the mask, and the network where the file has one, whose bytes the plan saw."""
    settings, path = stage.settings, stage.files["mask"]
    network = new_network(settings.model, 0, context.device)
    found = read_mask_file(path, network, prune_shortcuts=settings.prune_shortcuts)
    if found.sha256 != settings.sha256:
        raise RuntimeError(f"{path} has changed since the sweep started: run it again")
    tensors = {"mask": state_arrays(found.mask)}
    metrics = {
        "epochs": 0,
        "mask_sparsity": mask_sparsity(found.mask),
        "model_sparsity": model_sparsity(network, found.mask),
    }
    if found.weights is not None:
        load_tensors(network, found.weights)
        tensors["weights"] = state_arrays(network.state_dict())
        metrics["test_loss"], metrics["test_accuracy"], metrics["test_top5"] = evaluate(network, context.test)
    return {stage.key: Artefact(tensors, metrics)}


KIND = StageKind(
    name="mask",
    settings=MaskSettings,
    rank=30,
    compute=mask,
    rows=network_rows,
    num_bytes=lambda stage, network: network.mask + (network.weights if stage.settings.has_network else 0),
    feeds_arms=True,
)
