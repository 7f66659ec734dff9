"""Several processes that train one network together: what each takes of a batch, and what they exchange.

Each holds the whole network and sees its part of every batch; the gradients that all of them apply are the whole batch's, so
how many they are decides nothing but rounding. The process group is torch's, and made by the code that starts the processes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.training.packing import Program

__all__ = ["ALONE", "Team"]

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Team:
    """The processes of torch's default group, and which of them this one is. Every method must be called by all of them."""

    rank: int = 0
    size: int = 1

    @property
    def part(self) -> tuple[int, int]:
        """Which part of a batch is this process's: (number, of how many)."""
        return self.rank, self.size

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def scaled(self, loss: Tensor) -> Tensor:
        """Return this process's share of a batch's loss as it must be differentiated: the gradients are averaged after."""
        return loss if self.size == 1 else loss * self.size

    def any(self, *flags: bool) -> list[bool]:
        """Return which flags any process has set."""
        if self.size == 1:
            return list(flags)
        together = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return [bool(flag) for flag in together.tolist()]

    def agree(self, value: Any, what: str) -> None:
        """Raise RuntimeError unless all processes have the same small value."""
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        if any(other != found[0] for other in found):
            raise RuntimeError(f"the processes that train together differ in {what}: {found}")

    @contextmanager
    def trains(self, program: Program, *, synced: bool) -> Iterator[None]:
        """Have backward passes leave the whole team's gradients, by DistributedDataParallel, in a program of one network.

        With `synced`, its batch norms see whole batches in training; else each process's see its own part. ValueError for a
        program of several networks, and for a batch norm of a kind of its own, which cannot be synced.
        """
        if self.size == 1:
            yield
            return
        if program.size > 1:
            raise ValueError(f"{program.size} networks as one program cannot be trained by {self.size} processes")
        network = program.network
        modules = network.named_modules(remove_duplicate=False)
        norms = {name: module for name, module in modules if isinstance(module, _BatchNorm) and synced}
        ours = {norm: _synced(norm, name) for name, norm in norms.items()}
        try:
            for name, norm in norms.items():
                network.set_submodule(name, ours[norm])
            with warnings.catch_warnings():  # the option's new name is not in torch 2.11
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                program.runs = nn.parallel.DistributedDataParallel(
                    network, broadcast_buffers=False, find_unused_parameters=True
                )
            yield
        finally:
            program.runs = network
            for name, norm in norms.items():
                norm.train(network.training)
                network.set_submodule(name, norm)

    @torch.no_grad()
    def settle(self, program: Program) -> None:
        """Give every process the mean of all processes' batch norm statistics.

        They follow the batches' linearly, so the mean of what each has seen is what the mean of each batch would have made.
        """
        for module in program.network.modules() if self.size > 1 else ():
            if not isinstance(module, _BatchNorm) or isinstance(module, nn.SyncBatchNorm | SyncedBatchNorm):
                continue
            if module.running_mean is not None and module.running_var is not None:
                for buffer in (module.running_mean, module.running_var):
                    self.sum(buffer).div_(self.size)


ALONE = Team()


def _synced(norm: _BatchNorm, name: str) -> _BatchNorm:
    """Return a batch norm with the same tensors that sees the batches of all processes."""
    if type(norm) not in PLAIN_NORMS:
        raise ValueError(f"{name}: a {type(norm).__name__} cannot be synced over processes: set unsynced_workers")
    tensors = [tensor for tensor in (norm.weight, norm.running_mean) if tensor is not None]
    kind = nn.SyncBatchNorm if any(tensor.is_cuda for tensor in tensors) else SyncedBatchNorm
    synced = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(synced, part, getattr(norm, part))
    return synced.train(norm.training)


class SyncedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, on the CPU, where torch's own does not run."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Any but a vector."""
        if x.ndim < 2:
            raise ValueError(f"batch norm needs (B, C, ...), not {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        out, mean, variance, count = _WholeBatch.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), rate)
        normalised: Tensor = out
        return normalised


class _WholeBatch(torch.autograd.Function):
    """Normalise (B, C, ...) by mean and variance of all processes' batches; a process may have no sample."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        sums = torch.cat([x.sum(axes, dtype=torch.float64), torch.tensor([x.numel() / x.shape[1]], dtype=torch.float64)])
        dist.all_reduce(sums)
        count, mean = float(sums[-1]), (sums[:-1] / sums[-1]).to(torch.float32)
        squares = (x - _by_channel(mean, x)).square().sum(axes, dtype=torch.float64)
        dist.all_reduce(squares)
        variance = (squares / count).to(torch.float32)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.axes, ctx.count, ctx.has_bias = axes, count, bias is not None
        out = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if len(x) else x.clone()
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, scale = ctx.saved_tensors
        centred = (x - _by_channel(mean, x)) * _by_channel(scale, x)
        own = torch.stack([grad.sum(ctx.axes), (grad * centred).sum(ctx.axes)])  # of this process, as the parameters' are
        whole = own.clone()
        dist.all_reduce(whole)
        means = whole / ctx.count
        to_x = (grad - _by_channel(means[0], x) - centred * _by_channel(means[1], x)) * _by_channel(
            scale if weight is None else scale * weight, x
        )
        return to_x, None if weight is None else own[1], own[0] if ctx.has_bias else None, None


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    """Shape (C,) so that it meets the channels of (B, C, ...)."""
    return values.view(-1, *(1,) * (like.ndim - 2))
