"""The images of a .beton file by TorchCodec, which decodes JPEG with a libjpeg-turbo of its own; FFmpeg has no part in it."""

import torch
from torch import Tensor
from torchcodec.decoders import decode_jpeg

from raylth.core.data.dataset import DataError
from raylth.core.data.streamed.beton import RAW
from raylth.core.data.streamed.threaded_reader import ThreadedImages

__all__ = ["TorchCodecImages"]


class TorchCodecImages(ThreadedImages):
    """Decodes with TorchCodec, on the processor also where training is on a GPU."""

    def pixels(self, index: int) -> Tensor:
        """Return a sample's pixels (H, W, 3) uint8; DataError when it cannot be decoded."""
        stored, data = self.beton.stored[index], torch.from_numpy(self.beton.encoded(index).copy())
        if stored["mode"] == RAW:
            return data.view(int(stored["height"]), int(stored["width"]), 3)
        try:
            return decode_jpeg(data).permute(1, 2, 0)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{self.beton.path}: sample {index} cannot be decoded: {reason}") from error
