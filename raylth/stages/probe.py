"""What a training needs beyond its steps: the evaluation after its last epoch, run once beforehand."""

import torch

from raylth.core.training.loop import evaluate
from raylth.stages.context import Context
from raylth.stages.stage import Stage
from raylth.stages.training import new_network

__all__ = ["evaluate_a_batch"]

MOST_SAMPLES = 1000  # no batch of an evaluation is larger


def evaluate_a_batch(stage: Stage, context: Context) -> None:
    """Evaluate the first batch of the test split with a network like a training stage's, as the stage does at its end.

    A training evaluates after its last epoch only, with large batches in float32: that may take more memory than its steps.
    As much is held meanwhile as the training holds then beside its weights: gradients and momentum.
    """
    network = new_network(stage.settings.model, 0, context.device)
    beside = [torch.empty_like(parameter) for parameter in network.parameters() for _ in range(2)]
    evaluate(network, context.test.take(MOST_SAMPLES))
    del beside
