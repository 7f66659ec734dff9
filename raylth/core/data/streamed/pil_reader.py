"""The images of a .beton file by PIL, which every installation has."""

import torch
from torch import Tensor

from raylth.core.data.streamed.threaded_reader import ThreadedImages

__all__ = ["PilImages"]


class PilImages(ThreadedImages):
    """Decodes with PIL: the slowest loader, and the one that needs nothing else installed."""

    def pixels(self, index: int) -> Tensor:
        """Return a sample's pixels (H, W, 3) uint8; DataError when it cannot be decoded."""
        return torch.from_numpy(self.beton.image(index).copy())  # torch needs writable memory
