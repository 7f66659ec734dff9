"""Resizing by area, as OpenCV's INTER_AREA does it, for the readers that bring no such filter of their own."""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["resize_by_area"]

LENGTHS = 2048  # whose weights are kept: 10 kB each


def resize_by_area(pixels: Tensor, side: int) -> Tensor:
    """Resize (H, W, 3) uint8 to (side, side, 3) uint8, contiguous; at most 1 of 255 from OpenCV's INTER_AREA by rounding."""
    height, width, _ = pixels.shape
    shrinks = min(height, width) >= side
    rows = _weighted(pixels.to(torch.float32).reshape(height, -1), side, shrinks)  # (side, W * 3)
    columns = rows.view(side, width, 3).transpose(0, 1).reshape(width, -1)
    resized = _weighted(columns, side, shrinks).view(side, side, 3)  # (across, down, 3)
    return resized.round_().clamp_(0, 255).to(torch.uint8).transpose(0, 1).contiguous()


def _weighted(lines: Tensor, side: int, shrinks: bool) -> Tensor:
    indices, weights = _weights(len(lines), side, shrinks)
    return F.embedding_bag(indices, lines, mode="sum", per_sample_weights=weights)


@lru_cache(LENGTHS)
def _weights(length: int, side: int, shrinks: bool) -> tuple[Tensor, Tensor]:
    """Return (side, K) indices of pixels and how much of each is in a resized pixel; the weights of each sum to 1.

    Where the whole image shrinks, that is the share of the area; else OpenCV interpolates between neighbours, no further
    apart than a resized pixel is wide.
    """
    inverse = side / length
    scale = 1 / inverse  # OpenCV's arithmetic and its float32: by another, some lines would be their neighbours
    target = np.arange(side)[:, None]
    if shrinks:
        begin = target * (length / side)
        indices = np.floor(begin).astype(np.int64) + np.arange(math.ceil(length / side) + 1)
        weights = np.minimum(begin + length / side, indices + 1) - np.maximum(begin, indices)
        weights = np.maximum(weights, 0) / (length / side)
    else:
        first = np.floor(target * scale).astype(np.int64)
        beyond = ((target + 1) - (first + 1) * inverse).astype(np.float32)
        beyond = np.where(beyond <= 0, 0, beyond - np.floor(beyond))
        indices, weights = np.concatenate([first, first + 1], axis=1), np.concatenate([1 - beyond, beyond], axis=1)
    return torch.from_numpy(np.minimum(indices, length - 1)), torch.from_numpy(weights.astype(np.float32))
