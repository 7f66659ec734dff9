"""Stage `ensemble`: a set of networks -> what they are together, and how much they differ (paper, Table 1)."""

from dataclasses import asdict

import torch
from torch import Tensor, nn

from raylth.core.data import Split
from raylth.core.ensemble import ensemble_metrics
from raylth.core.modes import in_mode
from raylth.stages.context import Context
from raylth.stages.kind import Finished, Rows, StageKind
from raylth.stages.settings import EnsembleSettings
from raylth.stages.stage import Artefact, Stage
from raylth.stages.training import load_network

__all__ = ["KIND", "ensemble"]

BATCH_SIZE = 1000


def ensemble(stage: Stage[EnsembleSettings], context: Context) -> dict[str, Artefact]:
    """Measure the members' predictions on the test split, each alone and all together."""
    members = [load_network(stage.settings.model, context, key) for key in stage.parents.values()]
    probabilities = torch.stack([_predict(network, context.test) for network in members])
    found = ensemble_metrics(probabilities, context.test.y)
    return {stage.key: Artefact({}, {"epochs": 0, "ensemble": asdict(found)})}


@torch.no_grad()
def _predict(network: nn.Module, split: Split) -> Tensor:
    """Return the predicted probabilities, (samples, classes) float64."""
    with in_mode(network, training=False):
        logits = [network(x) for x, _ in split.batches(BATCH_SIZE)]
    return torch.cat(logits).double().softmax(dim=1)


def _rows(finished: Finished) -> Rows:
    found = finished.metrics.get("ensemble")
    return {"ensembles": [{"set_number": finished.stage.labels["set_number"], **found}] if found else []}


KIND = StageKind(name="ensemble", settings=EnsembleSettings, rank=90, compute=ensemble, rows=_rows)
