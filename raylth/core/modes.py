"""Training and evaluation mode, temporarily."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["draws_numbers", "freeze_dropout", "in_mode"]

DRAWING = {"StochasticDepth"}  # modules that draw in training, beside torch's dropouts


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


def draws_numbers(model: nn.Module) -> bool:
    """Whether a network draws random numbers in training, as dropout does."""
    return any(
        (isinstance(module, _DropoutNd) and module.p > 0) or type(module).__name__ in DRAWING for module in model.modules()
    )
