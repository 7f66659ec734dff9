"""What calls the kernels: block sizes by a plain rule, outputs and partial sums, grids.

Block sizes and the number of partial sums depend on a layer's shape and batch, never on the number of members, so that a
member has the same bits alone and beside others; nothing is measured at a call, so that calls can be captured in CUDA graphs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from raylth.core.training.engines import kernels

__all__ = ["Blocks", "Geometry", "conv", "input_gradient", "moments", "norm", "norm_gradient", "weight_gradient"]

Pair = tuple[int, int]
EMPTY: Callable[..., Tensor] = torch.empty  # all outputs come from it; a test puts one here that fills them with NaN
LIMIT = 2**31 - 1  # elements of one member's tensor: offsets within a member are int32


class Blocks(NamedTuple):
    """A kernel's tile: rows (m), columns (n), depth of one step of a product (k), and how the compiler runs it."""

    m: int
    n: int
    k: int = 1
    warps: int = 4
    stages: int = 2

    @property
    def tile(self) -> tuple[int, int, int]:
        """Rows, columns and depth, as the kernels take them."""
        return self.m, self.n, self.k

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler; a product and a sum are fused whatever a version of Triton does by default."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


class Geometry(NamedTuple):
    """A convolution's shape: of input and output channels, sizes (H, W), kernel (R, S), stride and padding."""

    inputs: int
    outputs: int
    size: Pair
    out_size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> "Geometry":
        """Read it from x (K, B, H, W, I) and weight (K, O, R, S, I); raises ValueError for shapes that do not fit."""
        if x.ndim != 5 or weight.ndim != 5 or (x.shape[0], x.shape[4]) != (weight.shape[0], weight.shape[4]):
            raise ValueError(f"input {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit")
        if min(stride) < 1 or min(padding) < 0:
            raise ValueError(f"stride {stride}, padding {padding}")
        _, outputs, r, s, inputs = weight.shape
        h, w = x.shape[2:4]
        out_size = ((h + 2 * padding[0] - r) // stride[0] + 1, (w + 2 * padding[1] - s) // stride[1] + 1)
        if min(out_size) < 1:
            raise ValueError(f"no output for size {(h, w)}, kernel {(r, s)}, stride {stride}, padding {padding}")
        return cls(inputs, outputs, (h, w), out_size, (r, s), stride, padding)

    @property
    def depth(self) -> int:
        """Elements of one output's weight."""
        return self.inputs * self.taps

    @property
    def taps(self) -> int:
        """Pixels of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def steps(self) -> tuple[int, ...]:
        """Kernel, stride and padding, as the kernels take them."""
        return *self.kernel, *self.stride, *self.padding


def conv_blocks(rows: int, columns: int, channels: int, taps: int, itemsize: int) -> Blocks:
    """Tile of a product (rows, taps * channels) x (taps * channels, columns) for elements of `itemsize` bytes."""
    wide = itemsize < 4
    m = 128 if wide and rows >= 4096 else 64
    n = _power(columns, 16, 128 if wide else 64)
    k = 64 if wide and channels % 64 == 0 else _power(channels * taps, 16, 32)
    return Blocks(m, n, k, 8 if m * n >= 128 * 128 else 4, 3 if k == 64 else 2)


def weight_blocks(columns: int, depth: int, itemsize: int) -> Blocks:
    """Tile of a weight's gradient: m pixels a step, n outputs, k elements of an output's weight."""
    wide = itemsize < 4
    return Blocks(64 if wide else 16, _power(columns, 16, 128 if wide else 64), 64 if depth > 32 else 32, 4, 3 if wide else 2)


def norm_blocks(channels: int) -> Blocks:
    """Tile of elementwise work: 16 elements a thread, at most 128 channels wide."""
    n = _power(channels, 1, 128)
    return Blocks(2048 // n, n)


def shares(rows: int, step: int, wanted: int, most: int) -> Pair:
    """Split rows in up to `most` shares of about `wanted`: how many, and the rows of one, a multiple of step."""
    share = triton.cdiv(max(wanted, triton.cdiv(rows, most)), step) * step
    return triton.cdiv(rows, share), share


def conv(x: Tensor, weight: Tensor, shape: Geometry, *, moments: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Convolve x (K, B, H, W, I) with weight (K, O, R, S, I) to y (K, B, Ho, Wo, O) and, asked for, its moments (K, O)."""
    members, batch = x.shape[:2]
    rows = batch * shape.out_size[0] * shape.out_size[1]
    blocks = conv_blocks(rows, shape.outputs, shape.inputs, shape.taps, x.element_size())
    tiles = triton.cdiv(rows, blocks.m)
    y = EMPTY((members, batch, *shape.out_size, shape.outputs), dtype=x.dtype, device=x.device)
    _check(x, weight, y)
    means, squares = _partials(x, 2, members, tiles, shape.outputs) if moments else (None, None)
    run(
        "conv", kernels.conv, (tiles * triton.cdiv(shape.outputs, blocks.n), members),
        (x, weight, y, means, squares, batch),
        (shape.inputs, *shape.size, shape.outputs, *shape.out_size, *shape.steps, moments, *blocks.tile), blocks,
    )  # fmt: skip
    if means is None or squares is None:
        return y, None, None
    return y, *_merge(means, squares, rows, blocks.m)


def input_gradient(grad: Tensor, weight: Tensor, shape: Geometry) -> Tensor:
    """Map grad (K, B, Ho, Wo, O) of a convolution's output to that of its input, (K, B, H, W, I)."""
    members, batch = grad.shape[:2]
    phases = shape.stride[0] * shape.stride[1]
    rows = batch * triton.cdiv(shape.size[0], shape.stride[0]) * triton.cdiv(shape.size[1], shape.stride[1])
    blocks = conv_blocks(rows, shape.inputs, shape.outputs, shape.taps, grad.element_size())
    grid = (triton.cdiv(rows, blocks.m) * triton.cdiv(shape.inputs, blocks.n), phases, members)
    to_x = EMPTY((members, batch, *shape.size, shape.inputs), dtype=grad.dtype, device=grad.device)
    run(
        "input_gradient", kernels.input_gradient, grid, (grad, weight, to_x, batch),
        (shape.outputs, *shape.out_size, shape.inputs, *shape.size, *shape.steps, *blocks.tile), blocks,
    )  # fmt: skip
    return to_x


def weight_gradient(x: Tensor, grad: Tensor, shape: Geometry) -> Tensor:
    """Return the float32 gradient (K, O, R, S, I) of a convolution's weight from x and grad (K, B, Ho, Wo, O)."""
    members, batch = x.shape[:2]
    rows = batch * shape.out_size[0] * shape.out_size[1]
    blocks = weight_blocks(shape.outputs, shape.depth, x.element_size())
    count, share = shares(rows, blocks.m, 2048, 64)
    partial = _partials(x, members, count, shape.outputs, *shape.kernel, shape.inputs)
    run(
        "weight_gradient", kernels.weight_gradient,
        (triton.cdiv(shape.depth, blocks.k) * triton.cdiv(shape.outputs, blocks.n), count, members),
        (x, grad, partial, batch, share),
        (shape.inputs, *shape.size, shape.outputs, *shape.out_size, *shape.steps, *blocks.tile), blocks,
    )  # fmt: skip
    return partial[:, 0] if count == 1 else partial.sum(1)


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance (K, C), float32, of y (K, ..., C)."""
    members, channels = y.shape[0], y.shape[-1]
    rows = y[0].numel() // channels
    _check(y)
    blocks = norm_blocks(channels)
    grid = (triton.cdiv(rows, blocks.m), triton.cdiv(channels, blocks.n), members)
    means, squares = _partials(y, 2, members, grid[0], channels)
    run("tile_moments", kernels.tile_moments, grid, (y, means, squares, rows), (channels, blocks.m, blocks.n), blocks)
    return _merge(means, squares, rows, blocks.m)


def norm(
    y: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool
) -> Tensor:
    """Normalise y (K, ..., C) with the other's (K, C), add the residual, apply ReLU."""
    z = EMPTY(y.shape, dtype=y.dtype, device=y.device)
    _check(y)
    rows, grid, blocks = _by_element(y)
    arguments = (y, mean, var, weight, bias, residual, z, rows)
    run("norm", kernels.norm, grid, arguments, (y.shape[-1], eps, relu, blocks.m, blocks.n), blocks)
    return z


def norm_gradient(
    grad: Tensor, y: Tensor, z: Tensor, mean: Tensor, var: Tensor, weight: Tensor, eps: float, relu: bool, to_residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Map grad of a norm's output z to those of y, weight and bias and, where asked for, of the residual."""
    rows, grid, blocks = _by_element(y)
    members, channels = y.shape[0], y.shape[-1]
    count, share = shares(rows, blocks.m, 1024, 256)
    partial = _partials(y, 2, members, count, channels)
    constants = (channels, eps, relu, blocks.m, blocks.n)
    run("norm_sums", kernels.norm_sums, (count, *grid[1:]), (grad, y, z, mean, var, partial, rows, share), constants, blocks)
    sums = partial.sum(2)
    to_y, to_added = (EMPTY(y.shape, dtype=y.dtype, device=y.device) if needed else None for needed in (True, to_residual))
    arguments = (grad, y, z, mean, var, weight, sums, to_y, to_added, rows)
    run("norm_gradient", kernels.norm_gradient, grid, arguments, constants, blocks)
    assert to_y is not None
    return to_y, sums[0], sums[1], to_added


def start(
    name: str, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: tuple[Any, ...], blocks: Blocks
) -> None:
    """Start a kernel on the device of its first argument."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, *constants, **blocks.options)


run = start  # `compiling` puts a function here that compiles what would be started


def _by_element(y: Tensor) -> tuple[int, tuple[int, int, int], Blocks]:
    rows, channels = y[0].numel() // y.shape[-1], y.shape[-1]
    blocks = norm_blocks(channels)
    return rows, (triton.cdiv(rows, blocks.m), triton.cdiv(channels, blocks.n), y.shape[0]), blocks


def _merge(means: Tensor, squares: Tensor, rows: int, rows_per_tile: int) -> tuple[Tensor, Tensor]:
    """Merge the moments of tiles (K, tiles, C) to those of all rows (K, C)."""
    members, tiles, channels = means.shape
    mean, var = _partials(means, 2, members, channels)
    blocks = Blocks(128, _power(channels, 1, 16))
    arguments = (means, squares, mean, var, rows, tiles)
    constants = (channels, rows_per_tile, blocks.m, blocks.n)
    run("merge_moments", kernels.merge_moments, (triton.cdiv(channels, blocks.n), members), arguments, constants, blocks)
    return mean, var


def _partials(like: Tensor, *shape: int) -> Tensor:
    return EMPTY(shape, dtype=torch.float32, device=like.device)


def _power(number: int, least: int, most: int) -> int:
    return max(least, min(most, triton.next_power_of_2(number)))


def _check(*tensors: Tensor) -> None:
    """Raise ValueError for what the kernels cannot address or compute."""
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"neither float32 nor bfloat16: {tensor.dtype}")
        if not tensor.is_contiguous():
            raise ValueError(f"not contiguous: {tuple(tensor.shape)}, strides {tensor.stride()}")
        if tensor[0].numel() > LIMIT:
            raise ValueError(f"more than {LIMIT} elements a member: {tuple(tensor.shape)}")
