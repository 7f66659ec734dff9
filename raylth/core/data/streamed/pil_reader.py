"""The images of a .beton file without FFCV: PIL in threads, slower, with the same crops and flips."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from raylth.core.data.streamed.beton import Beton
from raylth.core.data.streamed.crops import RATIO, SCALE, center_crop, random_resized_crop

__all__ = ["PilImages"]


class PilImages:
    """Reads batches of a file's images at one resolution, with as many threads as torch has here."""

    def __init__(self, beton: Beton, resolution: int, center_share: float, device: torch.device) -> None:
        self.beton, self.resolution, self.center_share, self.device = beton, resolution, center_share, device

    def batches(self, order: np.ndarray, batch_size: int, key: int | None) -> Iterator[Tensor]:
        """Yield the images (B, H, W, 3) uint8 of the samples in `order`: randomly cropped by `key`, or their centres.

        They differ from FFCV's by how JPEG and resizing round (about 1 of 255 on average).
        """
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            coming: list[Future[np.ndarray]] = []  # the next batch is read while one is used
            for start in range(0, len(order) + batch_size, batch_size):
                ready, wanted = coming, order[start : start + batch_size]
                coming = [pool.submit(self._read, int(index), key) for index in wanted]
                if ready:
                    yield torch.from_numpy(np.stack([one.result() for one in ready])).to(self.device)

    def _read(self, index: int, key: int | None) -> np.ndarray:
        pixels, flip = self.beton.image(index), False
        height, width, _ = pixels.shape
        if key is None:
            top, left, rows, columns = center_crop(height, width, self.center_share)
        else:
            top, left, rows, columns, flip = random_resized_crop(key, index, height, width, SCALE, RATIO)
        resized = _resize(pixels[top : top + rows, left : left + columns], self.resolution)
        return np.ascontiguousarray(resized[:, ::-1] if flip else resized)


def _resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resize (H, W, 3) uint8 to a square as OpenCV's INTER_AREA does."""
    shrinks = min(pixels.shape[:2]) >= side
    down, across = (_weights(length, side, shrinks) for length in pixels.shape[:2])
    halfway = np.tensordot(down, pixels.astype(np.float32), axes=(1, 0))  # (side, W, 3)
    return np.rint(np.einsum("hwc,ow->hoc", halfway, across, optimize=True)).clip(0, 255).astype(np.uint8)


def _weights(length: int, side: int, shrinks: bool) -> np.ndarray:
    """Return (side, length): how much of each pixel is in each of the resized line's; rows sum to 1.

    Where the whole image shrinks, that is the share of the area; else OpenCV interpolates between neighbours, no further
    apart than a resized pixel is wide.
    """
    scale, pixel = length / side, np.arange(length)
    if shrinks:
        begin = np.arange(side)[:, None] * scale
        inside = np.minimum(begin + scale, pixel + 1) - np.maximum(begin, pixel)
        return (np.maximum(inside, 0) / scale).astype(np.float32)
    first = np.minimum(np.floor(np.arange(side) * scale).astype(np.int64), length - 1)
    beyond = (np.arange(side) + 1) - (first + 1) / scale
    beyond = np.where(beyond <= 0, 0.0, beyond - np.floor(beyond))
    weights = np.zeros((side, length), np.float32)
    weights[np.arange(side), first] += 1 - beyond
    weights[np.arange(side), np.minimum(first + 1, length - 1)] += beyond
    return weights
