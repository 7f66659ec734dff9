"""Training and evaluation mode, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["freeze_dropout", "in_mode"]


@contextmanager
def in_mode(*models: nn.Module, training: bool) -> Iterator[None]:
    """Put networks into training or evaluation mode; every module gets its own flag back, also after an error."""
    before = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.train(training)
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


def freeze_dropout(model: nn.Module) -> None:
    """Put everything but batch norms into evaluation mode: dropout must not enter the statistics."""
    for module in model.modules():
        is_leaf = next(module.children(), None) is None
        if (is_leaf and not isinstance(module, _BatchNorm)) or type(module).__name__ == "StochasticDepth":
            module.training = False
