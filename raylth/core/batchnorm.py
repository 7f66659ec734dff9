"""Statistics of batch norm, measured anew: a network between two others needs its own."""

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.batches import Batches, inputs_of
from raylth.core.modes import freeze_dropout, in_mode
from raylth.core.precision import precision

__all__ = ["Moments", "reset_bn_stats"]


class Moments:
    """Mean and variance of each channel over all samples and positions, accumulated in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None  # (C,) float64
        self.squares: Tensor | None = None  # (C,) float64, summed squared deviations from the mean

    def add(self, x: Tensor, axis: int = 1) -> None:
        """Add one batch of outputs whose channels are `axis`; parallel variance of Chan et al. (1979)."""
        rows = x.detach().movedim(axis, -1).flatten(0, -2)  # (n, C)
        mean = rows.mean(0, dtype=torch.float64)
        squares = (rows - mean.to(rows.dtype)).square().sum(0, dtype=torch.float64)
        if self.mean is None or self.squares is None:
            self.mean, self.squares = mean, squares
        else:
            total = self.count + len(rows)
            gap = mean - self.mean
            self.squares = self.squares + squares + gap**2 * (self.count * len(rows) / total)
            self.mean = self.mean + gap * (len(rows) / total)
        self.count += len(rows)

    def result(self, correction: int = 0) -> tuple[Tensor, Tensor]:
        """Return (mean, variance), (C,) float64 each; ValueError when nothing was added."""
        if self.mean is None or self.squares is None:
            raise ValueError("no samples: statistics need at least one batch")
        return self.mean, self.squares / max(self.count - correction, 1)


@precision("float32")
@torch.no_grad()
def reset_bn_stats(model: nn.Module, batches: Batches) -> None:
    """Set the running statistics of every batch norm to those of the given data, in one pass, in place.

    `batches` yields network inputs (B, *in_shape), or (inputs, labels) as a DataLoader does. The network runs in training
    mode, so each layer sees what the batch norms before it make of the batch; mean and (unbiased) variance are those of all
    samples and positions together, however they are cut into batches, not an average of batch variances. Weights and the
    training flag are unchanged.
    Raises ValueError for no data.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        return
    moments = {name: Moments() for name in norms}
    with ExitStack() as hooks, in_mode(model, training=True):
        for name, module in norms.items():
            handle = module.register_forward_pre_hook(lambda _, args, into=moments[name]: into.add(args[0]))
            hooks.callback(handle.remove)
        freeze_dropout(model)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            for x in inputs_of(batches, model):
                model(x)
        finally:
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
    set_statistics(norms, moments)


def set_statistics(norms: Mapping[str, _BatchNorm], moments: Mapping[str, Moments]) -> None:
    """Write measured input moments into the running statistics of batch norms."""
    for name, module in norms.items():
        if module.running_mean is not None and module.running_var is not None:
            mean, variance = moments[name].result(correction=1)
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)
