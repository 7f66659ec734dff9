"""The images of a .beton file by NVIDIA DALI, decoded and resized on the processor or on the GPU, with our own windows.

DALI draws nothing: each sample comes with its window and flip. Its filters have none that averages areas; the triangular one
is the nearest to FFCV's, by the mean of the differences (1.3 of 255, a cubic's 1.7, Lanczos's 2.6).
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from raylth.core.data.dataset import DataError
from raylth.core.data.streamed.beton import JPEG, Beton
from raylth.core.data.streamed.crops import window

__all__ = ["DaliImages"]

NO_BYTES, NO_PIXELS = np.zeros(1, np.uint8), np.zeros((1, 1, 3), np.uint8)  # of what a sample is not


class DaliImages:
    """Reads batches of a file's images at one resolution, with as many threads as torch has here."""

    def __init__(self, beton: Beton, resolution: int, center_share: float, device: torch.device) -> None:
        self.beton, self.resolution, self.center_share, self.device = beton, resolution, center_share, device
        self.threads = torch.get_num_threads()
        self.pipeline: Any = None  # for batches up to its size; None: to be built
        self.lock = threading.Lock()  # several epochs may be read in turn

    def batches(self, order: np.ndarray, batch_size: int, key: int | None) -> Iterator[Tensor]:
        """Yield the images (B, H, W, 3) uint8 of the samples in `order`: randomly cropped by `key`, or their centres."""
        parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self._read, parts[0], key)  # the next batch is read while one is used
            for part in parts[1:]:
                ready, coming = coming, thread.submit(self._read, part, key)
                yield ready.result()
            yield coming.result()

    def _read(self, indices: np.ndarray, key: int | None) -> Tensor:
        inputs: dict[str, list[np.ndarray]] = {"encoded": [], "raw": [], "is_jpeg": [], "corner": [], "size": [], "flip": []}
        for index in indices.tolist():
            stored, data = self.beton.stored[index], self.beton.encoded(index)
            height, width, is_jpeg = int(stored["height"]), int(stored["width"]), bool(stored["mode"] == JPEG)
            top, left, rows, columns, flip = window(key, index, height, width, self.center_share)
            inputs["encoded"].append(data if is_jpeg else NO_BYTES)
            raw = NO_PIXELS if is_jpeg else data.reshape(height, width, 3)[top : top + rows, left : left + columns]
            inputs["raw"].append(np.ascontiguousarray(raw))
            inputs["is_jpeg"].append(np.array(is_jpeg))
            inputs["corner"].append(np.array((top, left), np.int32))
            inputs["size"].append(np.array((rows, columns), np.int32))
            inputs["flip"].append(np.array(flip, np.int32))
        try:
            return self._run(inputs, len(indices))
        except RuntimeError as error:
            for index in indices.tolist():
                self.beton.image(index)  # names the sample that is broken
            raise DataError(f"{self.beton.path}: DALI cannot decode a batch: {_reason(error)}") from error

    def _run(self, inputs: dict[str, list[np.ndarray]], count: int) -> Tensor:
        with self.lock:
            if self.pipeline is None or self.pipeline.max_batch_size < count:
                self.pipeline = _pipeline(self.resolution, self.device, batch_size=count, num_threads=self.threads)
            pipeline, self.pipeline = self.pipeline, None  # one that has failed cannot be used again
            (images,) = pipeline.run(**inputs)  # waits until they are there
            found = from_dlpack(images.as_tensor()).clone()  # DALI writes its next batch there
            if found.is_cuda:
                torch.cuda.current_stream(found.device).synchronize()  # the consumer runs on another stream
            self.pipeline = pipeline
        return found


def _pipeline(resolution: int, device: torch.device, **options: Any) -> Any:
    """Build what turns encoded or raw images with their windows into (resolution, resolution, 3) uint8."""
    on_gpu = device.type == "cuda"

    @pipeline_def(enable_conditionals=True, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
    def define() -> Any:
        encoded = fn.external_source(name="encoded", ndim=1, dtype=types.UINT8)
        raw = fn.external_source(name="raw", ndim=3, dtype=types.UINT8, layout="HWC")
        is_jpeg = fn.external_source(name="is_jpeg", ndim=0, dtype=types.BOOL)
        corner, size = (fn.external_source(name=name, ndim=1, dtype=types.INT32) for name in ("corner", "size"))
        flip = fn.external_source(name="flip", ndim=0, dtype=types.INT32)
        if is_jpeg:
            # Which samples NVJPEG's hardware takes depends on the others of a batch, and it rounds differently.
            more = {"device": "mixed", "hw_decoder_load": 0.0, "jpeg_fancy_upsampling": True} if on_gpu else {"device": "cpu"}
            cropped = fn.decoders.image_slice(encoded, start=corner, shape=size, axes=(0, 1), **more)
        else:
            cropped = raw.gpu() if on_gpu else raw
        resized = fn.resize(cropped, size=(resolution, resolution), interp_type=types.INTERP_TRIANGULAR)
        return fn.flip(resized, horizontal=flip)

    where = (device.index if device.index is not None else torch.cuda.current_device()) if on_gpu else None
    pipeline = define(device_id=where, **options)
    pipeline.build()
    return pipeline


def _reason(error: Exception) -> str:
    """Return the line of DALI's message that says what is wrong; others say where in the pipeline."""
    _, found, after = str(error).partition("encountered:")
    return next(
        (line.strip() for line in (after if found else str(error)).splitlines() if line.strip()), type(error).__name__
    )
