"""What reads the images of a .beton file one by one in threads: a decoder that is a function, and exact resizing by area."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from raylth.core.data.streamed.area import resize_by_area
from raylth.core.data.streamed.beton import Beton
from raylth.core.data.streamed.crops import window

__all__ = ["ThreadedImages"]


class ThreadedImages(ABC):
    """Reads batches of a file's images at one resolution, with as many threads as torch has here."""

    def __init__(self, beton: Beton, resolution: int, center_share: float, device: torch.device) -> None:
        self.beton, self.resolution, self.center_share, self.device = beton, resolution, center_share, device

    @abstractmethod
    def pixels(self, index: int) -> Tensor:
        """Return a sample's pixels (H, W, 3) uint8; DataError when it cannot be decoded."""

    def batches(self, order: np.ndarray, batch_size: int, key: int | None) -> Iterator[Tensor]:
        """Yield the images (B, H, W, 3) uint8 of the samples in `order`: randomly cropped by `key`, or their centres."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            coming: list[Future[Tensor]] = []  # the next batch is read while one is used
            for start in range(0, len(order) + batch_size, batch_size):
                ready, wanted = coming, order[start : start + batch_size]
                coming = [pool.submit(self._read, int(index), key) for index in wanted]
                if ready:
                    yield torch.stack([one.result() for one in ready]).to(self.device)

    def _read(self, index: int, key: int | None) -> Tensor:
        pixels = self.pixels(index)
        height, width, _ = pixels.shape
        top, left, rows, columns, flip = window(key, index, height, width, self.center_share)
        resized = resize_by_area(pixels[top : top + rows, left : left + columns], self.resolution)
        return resized.flip(1) if flip else resized
