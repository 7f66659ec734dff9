"""Operations of K stacked networks with derivatives: convolution, moments, batch norm with residual and ReLU.

Activations are (K, B, H, W, C), float32 or bfloat16; sums are float32. Needs Triton: import it only where that is there.
"""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from raylth.core.training.engines import launch
from raylth.core.training.engines.launch import Geometry, Pair

__all__ = ["conv2d", "moments", "norm"]


@overload
def conv2d(
    x: Tensor, weight: Tensor, *, stride: Pair = ..., padding: Pair = ..., moments: Literal[False] = ...
) -> Tensor: ...
@overload
def conv2d(
    x: Tensor, weight: Tensor, *, stride: Pair = ..., padding: Pair = ..., moments: Literal[True]
) -> tuple[Tensor, Tensor, Tensor]: ...
def conv2d(
    x: Tensor, weight: Tensor, *, stride: Pair = (1, 1), padding: Pair = (0, 0), moments: bool = False
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Convolve each member's x with its own weight: (K, B, H, W, I) and (K, O, R, S, I) to (K, B, Ho, Wo, O) in x's dtype.

    With moments also the output's mean and biased variance (K, O), float32, without derivative. The weight is cast to x's
    dtype; its gradient has the weight's own. Raises ValueError for shapes that do not fit or are too large.
    """
    y, mean, var = _Conv2d.apply(x, weight, stride, padding, moments)
    return (y, mean, var) if moments else y


def norm(
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    eps: float,
    relu: bool = False,
) -> Tensor:
    """Normalise y (K, ..., C) with mean, var, weight, bias (K, C), add the residual (y's shape and dtype), apply ReLU.

    The derivative is a training batch norm's: mean and var, which get no gradient, are taken as y's own moments. Raises
    ValueError for shapes that do not fit.
    """
    parts = (mean, var, weight, bias)
    if any(part.shape != (y.shape[0], y.shape[-1]) or part.dtype != torch.float32 for part in parts):
        raise ValueError(f"mean, var, weight and bias must be float32 {(y.shape[0], y.shape[-1])}")
    if residual is not None and (residual.shape, residual.dtype) != (y.shape, y.dtype):
        raise ValueError(f"a residual {tuple(residual.shape)} {residual.dtype} for {tuple(y.shape)} {y.dtype}")
    z: Tensor = _Norm.apply(y, mean, var, weight, bias, residual, eps, relu)
    return z


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance (K, C), float32 and without derivative, of y (K, ..., C)."""
    return launch.moments(y.detach().contiguous())


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, moments: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.shape, ctx.dtype = Geometry.of(x, weight, stride, padding), weight.dtype
        x, weight = x.contiguous(), weight.to(x.dtype).contiguous()
        ctx.save_for_backward(x, weight)
        y, mean, var = launch.conv(x, weight, ctx.shape, moments=moments)
        if mean is not None and var is not None:
            ctx.mark_non_differentiable(mean, var)
            ctx.set_materialize_grads(False)  # or autograd fills zeros for both at every step
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        to_x, to_weight = ctx.needs_input_grad[:2]
        return (
            launch.input_gradient(grad, weight, ctx.shape) if to_x else None,
            launch.weight_gradient(x, grad, ctx.shape).to(ctx.dtype) if to_weight else None,
            None, None, None,
        )  # fmt: skip


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        eps: float,
        relu: bool,
    ) -> Tensor:
        y, mean, var, weight, bias = (part.contiguous() for part in (y, mean, var, weight, bias))
        z = launch.norm(y, mean, var, weight, bias, None if residual is None else residual.contiguous(), eps, relu)
        ctx.save_for_backward(y, z if relu else y, mean, var, weight)
        ctx.eps, ctx.relu = eps, relu
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, z, mean, var, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[5]
        to_y, to_weight, to_bias, to_residual = launch.norm_gradient(
            grad.contiguous(), y, z, mean, var, weight, ctx.eps, ctx.relu, wanted and ctx.relu
        )
        if wanted and not ctx.relu:
            to_residual = grad  # the residual is just added
        return to_y, None, None, to_weight, to_bias, to_residual, None, None
