"""Triton kernels for K stacked networks: convolution in three directions, moments, batch norm. `launch` calls them.

Activations are (K, B, H, W, C), convolution weights (K, O, R, S, I), all contiguous. Offsets within a member are int32, a
member's own offset int64. No kernel uses atomics: every output element has one writer and a fixed order of additions. Sums
are float32. Upper-case arguments are constants of the compiled kernel.
"""

import triton
import triton.language as tl

__all__ = [
    "conv", "input_gradient", "merge_moments", "norm", "norm_gradient", "norm_sums", "tile_moments", "weight_gradient",
]  # fmt: skip


@triton.jit
def _moments(value, valid, count):
    """Mean and sum of squared deviations from it, over the rows of a tile (M, N) that are valid; both (1, N)."""
    mean = tl.sum(tl.where(valid, value, 0.0), 0)[None, :] / count
    away = tl.where(valid, value - mean, 0.0)
    return mean, tl.sum(away * away, 0)[None, :]


@triton.jit(do_not_specialize=["batch"])
def conv(
    source, weight, target, means, squares, batch,
    C: tl.constexpr, SOURCE_H: tl.constexpr, SOURCE_W: tl.constexpr,
    N: tl.constexpr, TARGET_H: tl.constexpr, TARGET_W: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, MOMENTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve source (K, B, SOURCE_H, SOURCE_W, C) to target (K, B, TARGET_H, TARGET_W, N); with MOMENTS also each tile's.

    The weight is (K, N, R, S, C); means and squares are (K, tiles, N), of the target as it is stored. Grid: (tiles of rows
    and columns, K).
    """
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    depth: tl.constexpr = R * S * C
    tile = tl.program_id(0) // tiles_n
    member = tl.program_id(1).to(tl.int64)
    rows = batch * (TARGET_H * TARGET_W)
    source += member * (batch * (SOURCE_H * SOURCE_W * C))
    weight += member * (depth * N)
    target += member * (rows * N)

    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    column = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    image = row // (TARGET_H * TARGET_W)
    top = row // TARGET_W % TARGET_H * STRIDE_H - PAD_H
    left = row % TARGET_W * STRIDE_W - PAD_W
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[None, :]
        k_down = start + tl.arange(0, BLOCK_K)[:, None]
        tap = start // C if C % BLOCK_K == 0 else k // C  # where a block has one tap, its place is a scalar
        h = top + tap // S
        w = left + tap % S
        valid = (row < rows) & (k < depth) & (h >= 0) & (h < SOURCE_H) & (w >= 0) & (w < SOURCE_W)
        a = tl.load(source + ((image * SOURCE_H + h) * SOURCE_W + w) * C + (k - tap * C), mask=valid, other=0.0)
        b = tl.load(weight + column * depth + k_down, mask=(k_down < depth) & (column < N), other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")

    result = total.to(target.dtype.element_ty)
    tl.store(target + row * N + column, result, mask=(row < rows) & (column < N))
    if MOMENTS:
        count = tl.minimum(rows - tile * BLOCK_M, BLOCK_M).to(tl.float32)
        mean, square = _moments(result.to(tl.float32), row < rows, count)
        where = (member * tl.cdiv(rows, BLOCK_M) + tile) * N + column
        tl.store(means + where, mean, mask=column < N)
        tl.store(squares + where, square, mask=column < N)


@triton.jit(do_not_specialize=["batch"])
def input_gradient(
    grad, weight, to_x, batch,
    C: tl.constexpr, SOURCE_H: tl.constexpr, SOURCE_W: tl.constexpr,
    N: tl.constexpr, TARGET_H: tl.constexpr, TARGET_W: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gather to_x (K, B, TARGET_H, TARGET_W, N), the gradient of a convolution's input, from grad (K, B, SOURCE_H, ..., C).

    The weight is (K, C, R, S, N). Grid: (tiles of rows and columns, phases, K). Pixels whose place within a stride is the
    same, a phase, have gradients from the same taps; each phase goes through its own, so that none is in vain for the stride.
    """
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    PHASE_H: tl.constexpr = (TARGET_H + STRIDE_H - 1) // STRIDE_H  # pixels of a phase
    PHASE_W: tl.constexpr = (TARGET_W + STRIDE_W - 1) // STRIDE_W
    TAPS_W: tl.constexpr = (S + STRIDE_W - 1) // STRIDE_W
    depth: tl.constexpr = (R + STRIDE_H - 1) // STRIDE_H * TAPS_W * C
    phase_h = tl.program_id(1) // STRIDE_W
    phase_w = tl.program_id(1) % STRIDE_W
    member = tl.program_id(2).to(tl.int64)
    grad += member * (batch * (SOURCE_H * SOURCE_W * C))
    weight += member * (R * S * C * N)
    to_x += member * (batch * (TARGET_H * TARGET_W * N))

    row = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    column = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    image = row // (PHASE_H * PHASE_W)
    y = row // PHASE_W % PHASE_H * STRIDE_H + phase_h
    x = row % PHASE_W * STRIDE_W + phase_w
    inside = (row < batch * (PHASE_H * PHASE_W)) & (y < TARGET_H) & (x < TARGET_W)
    first_r = (phase_h + PAD_H) % STRIDE_H
    first_s = (phase_w + PAD_W) % STRIDE_W
    bottom = (y + PAD_H - first_r) // STRIDE_H  # exact: that is what makes a phase
    right = (x + PAD_W - first_s) // STRIDE_W
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[None, :]
        k_down = start + tl.arange(0, BLOCK_K)[:, None]
        tap = start // C if C % BLOCK_K == 0 else k // C
        tap_down = k_down // C
        r = first_r + tap_down // TAPS_W * STRIDE_H
        s = first_s + tap_down % TAPS_W * STRIDE_W
        h = bottom - tap // TAPS_W
        w = right - tap % TAPS_W
        valid = inside & (k < depth) & (h >= 0) & (h < SOURCE_H) & (w >= 0) & (w < SOURCE_W)
        a = tl.load(grad + ((image * SOURCE_H + h) * SOURCE_W + w) * C + (k - tap * C), mask=valid, other=0.0)
        where = ((k_down - tap_down * C) * R + r) * (S * N) + s * N + column
        used = (k_down < depth) & (r < R) & (s < S) & (column < N)
        b = tl.load(weight + where, mask=used, other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    where = ((image * TARGET_H + y) * TARGET_W + x) * N + column
    tl.store(to_x + where, total.to(to_x.dtype.element_ty), mask=inside & (column < N))


@triton.jit(do_not_specialize=["batch", "share"])
def weight_gradient(
    x, grad, partial, batch, share,
    C: tl.constexpr, SOURCE_H: tl.constexpr, SOURCE_W: tl.constexpr,
    N: tl.constexpr, TARGET_H: tl.constexpr, TARGET_W: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum the weight's gradient over `share` of the output's pixels: float32 partial (K, shares, N, R, S, C).

    x (K, B, SOURCE_H, SOURCE_W, C), grad (K, B, TARGET_H, TARGET_W, N). Grid: (tiles of weights, shares, K).
    """
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    depth: tl.constexpr = R * S * C
    part = tl.program_id(1)
    member = tl.program_id(2).to(tl.int64)
    rows = batch * (TARGET_H * TARGET_W)
    x += member * (batch * (SOURCE_H * SOURCE_W * C))
    grad += member * (rows * N)
    partial += (member * tl.num_programs(1) + part) * (depth * N)

    first = tl.program_id(0) // tiles_n * BLOCK_K
    column = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    k = first + tl.arange(0, BLOCK_K)[None, :]
    tap = first // C if C % BLOCK_K == 0 else k // C
    total = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    for start in range(part * share, tl.minimum(part * share + share, rows), BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)[:, None]
        h = row // TARGET_W % TARGET_H * STRIDE_H - PAD_H + tap // S
        w = row % TARGET_W * STRIDE_W - PAD_W + tap % S
        valid = (row < rows) & (k < depth) & (h >= 0) & (h < SOURCE_H) & (w >= 0) & (w < SOURCE_W)
        image = row // (TARGET_H * TARGET_W)
        a = tl.load(x + ((image * SOURCE_H + h) * SOURCE_W + w) * C + (k - tap * C), mask=valid, other=0.0)
        b = tl.load(grad + row * N + column, mask=(row < rows) & (column < N), other=0.0)
        total = tl.dot(tl.trans(a), b, total, input_precision="ieee")

    k_down = first + tl.arange(0, BLOCK_K)[:, None]
    tl.store(partial + column * depth + k_down, total, mask=(k_down < depth) & (column < N))


@triton.jit(do_not_specialize=["rows"])
def tile_moments(y, means, squares, rows, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Moments of the tiles of y (K, rows, C): means and squares (K, tiles, C). Grid: (tiles, tiles of channels, K)."""
    tile = tl.program_id(0)
    member = tl.program_id(2).to(tl.int64)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    value = tl.load(y + member * (rows * C) + row * C + column, mask=(row < rows) & (column < C), other=0.0)
    count = tl.minimum(rows - tile * BLOCK_M, BLOCK_M).to(tl.float32)
    mean, square = _moments(value.to(tl.float32), row < rows, count)
    where = (member * tl.num_programs(0) + tile) * C + column
    tl.store(means + where, mean, mask=column < C)
    tl.store(squares + where, square, mask=column < C)


@triton.jit(do_not_specialize=["rows", "tiles"])
def merge_moments(
    means, squares, mean, var, rows, tiles,
    C: tl.constexpr, ROWS_PER_TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Merge tiles' moments (K, tiles, C) to the mean and the biased variance (K, C). Grid: (tiles of channels, K).

    Chan's formula for any number of parts: the deviations within tiles plus those of the tiles' means from the whole's.
    """
    member = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    means += member * (tiles * C)
    squares += member * (tiles * C)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, tiles, BLOCK_M):
        tile = start + tl.arange(0, BLOCK_M)[:, None]
        count = tl.minimum(rows - tile * ROWS_PER_TILE, ROWS_PER_TILE).to(tl.float32)
        total += count * tl.load(means + tile * C + column, mask=(tile < tiles) & (column < C), other=0.0)
    whole = tl.sum(total, 0)[None, :] / rows
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, tiles, BLOCK_M):
        tile = start + tl.arange(0, BLOCK_M)[:, None]
        valid = (tile < tiles) & (column < C)
        count = tl.minimum(rows - tile * ROWS_PER_TILE, ROWS_PER_TILE).to(tl.float32)
        away = tl.load(means + tile * C + column, mask=valid, other=0.0) - whole
        within = tl.load(squares + tile * C + column, mask=valid, other=0.0)
        total += tl.where(valid, within + count * away * away, 0.0)
    tl.store(mean + member * C + column, whole, mask=column < C)
    tl.store(var + member * C + column, tl.sum(total, 0)[None, :] / rows, mask=column < C)


@triton.jit(do_not_specialize=["rows"])
def norm(
    y, mean, var, weight, bias, residual, z, rows,
    C: tl.constexpr, EPS: tl.constexpr, RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Normalise y (K, rows, C) to z, plus the residual unless it is None, then ReLU. Grid: (tiles, tiles of channels, K)."""
    member = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    channel = member * C + column
    base = member * (rows * C)
    where = row * C + column
    valid = (row < rows) & (column < C)
    scale = tl.rsqrt(tl.load(var + channel, mask=column < C, other=1.0) + EPS)
    scale *= tl.load(weight + channel, mask=column < C, other=0.0)
    centre = tl.load(mean + channel, mask=column < C, other=0.0)
    value = tl.load(y + base + where, mask=valid, other=0.0).to(tl.float32) - centre
    value = value * scale + tl.load(bias + channel, mask=column < C, other=0.0)
    if residual is not None:
        value += tl.load(residual + base + where, mask=valid, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value <= 0.0, 0.0, value)  # NaN stays
    tl.store(z + base + where, value.to(z.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["rows", "share"])
def norm_sums(
    grad, y, z, mean, var, partial, rows, share,
    C: tl.constexpr, EPS: tl.constexpr, RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of a norm's weight and bias over `share` of the rows.

    Float32 partial (2, K, shares, C): for the weight, for the bias. Grid: (shares, tiles of channels, K).
    """
    part = tl.program_id(0)
    member = tl.program_id(2).to(tl.int64)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    channel = member * C + column
    centre = tl.load(mean + channel, mask=column < C, other=0.0)
    scale = tl.rsqrt(tl.load(var + channel, mask=column < C, other=1.0) + EPS)
    base = member * (rows * C)
    to_weight = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    to_bias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(part * share, tl.minimum(part * share + share, rows), BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)[:, None]
        valid = (row < rows) & (column < C)
        where = row * C + column
        g = tl.load(grad + base + where, mask=valid, other=0.0).to(tl.float32)
        if RELU:
            g = tl.where(tl.load(z + base + where, mask=valid, other=0.0) > 0.0, g, 0.0)
        to_weight += g * (tl.load(y + base + where, mask=valid, other=0.0).to(tl.float32) - centre) * scale
        to_bias += g
    where = (member * tl.num_programs(0) + part) * C + column
    tl.store(partial + where, tl.sum(to_weight, 0)[None, :], mask=column < C)
    where += tl.num_programs(2).to(tl.int64) * tl.num_programs(0) * C
    tl.store(partial + where, tl.sum(to_bias, 0)[None, :], mask=column < C)


@triton.jit(do_not_specialize=["rows"])
def norm_gradient(
    grad, y, z, mean, var, weight, sums, to_y, to_residual, rows,
    C: tl.constexpr, EPS: tl.constexpr, RELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Give a norm's gradients for y and, unless to_residual is None, for the residual; mean and var are functions of y.

    sums (2, K, C) are the gradients of weight and bias. Grid: (tiles of rows, tiles of channels, K).
    """
    member = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    channel = member * C + column
    inside = column < C
    base = member * (rows * C)
    where = row * C + column
    valid = (row < rows) & inside
    scale = tl.rsqrt(tl.load(var + channel, mask=inside, other=1.0) + EPS)
    centre = tl.load(mean + channel, mask=inside, other=0.0)
    normal = (tl.load(y + base + where, mask=valid, other=0.0).to(tl.float32) - centre) * scale
    g = tl.load(grad + base + where, mask=valid, other=0.0).to(tl.float32)
    if RELU:
        g = tl.where(tl.load(z + base + where, mask=valid, other=0.0) > 0.0, g, 0.0)
    if to_residual is not None:
        tl.store(to_residual + base + where, g.to(to_residual.dtype.element_ty), mask=valid)
    mean_weight = tl.load(sums + channel, mask=inside, other=0.0) / rows
    mean_bias = tl.load(sums + tl.num_programs(2) * C + channel, mask=inside, other=0.0) / rows
    result = (g - mean_bias - normal * mean_weight) * scale * tl.load(weight + channel, mask=inside, other=0.0)
    tl.store(to_y + base + where, result.to(to_y.dtype.element_ty), mask=valid)
