"""The rows of a trained network: one in `results`, and its learning curve."""

from raylth.stages.kind import Finished, Rows
from raylth.stages.lineage import LINEAGE
from raylth.stages.settings import TrainingSettings

__all__ = ["MEASURED", "RECIPE", "network_rows"]

RECIPE = ("lr", "batch_size", "optimizer")  # of its recipe, where it was trained

MEASURED = (
    "mask_sparsity", "model_sparsity", "epochs", "test_accuracy", "test_top5", "test_loss", "train_loss", "seconds", "device",
    "pack", "engine", "workers", "precision", "loader",
)  # fmt: skip


def network_rows(finished: Finished) -> Rows:
    """Return a network's row, also when it diverged or failed (`status`, with the reason in `error`), and its curve."""
    stage, metrics = finished.stage, finished.metrics
    recipe = stage.settings.recipe if isinstance(stage.settings, TrainingSettings) else None
    result = {
        **{name: getattr(recipe, name, None) for name in RECIPE},
        **{name: metrics.get(name) for name in MEASURED},
        **dict.fromkeys(LINEAGE),
        "status": finished.state,
        "error": finished.graph.errors.get(stage.key),
    }
    return {"results": [result], "curves": list(metrics.get("curve", []))}
