"""FFCV's loader over a .beton file, with crops from a counter in place of its generators, which no seed reaches.

Imports FFCV, which imports numba and OpenCV. An entry of the order that FFCV walks is the sample's index and, above it, the
32-bit key of the epoch's draws: so one compiled decoder serves every seed and epoch.
"""

import contextlib
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from ffcv.fields.rgb_image import ResizedCropRGBImageDecoder
from ffcv.libffcv import ctypes_imdecode, ctypes_resize
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.transforms import ToDevice, ToTensor
from ffcv.traversal_order.base import TraversalOrder
from torch import Tensor

from raylth.core.data.streamed.beton import JPEG, Beton
from raylth.core.data.streamed.crops import RATIO, SCALE, center_crop, random_resized_crop

__all__ = ["FfcvImages"]

AHEAD = 2  # batches that are prepared in advance
MOMENT = 0.0005  # seconds
INDEX_BITS = 32


class FfcvImages:
    """Reads batches of a file's images at one resolution, with as many threads as torch has here."""

    def __init__(self, beton: Beton, resolution: int, center_share: float, device: torch.device) -> None:
        self.beton, self.resolution, self.center_share, self.device = beton, resolution, center_share, device
        self.loaders: dict[bool, Loader] = {}  # one for training, one for evaluation: each compiles for seconds

    def batches(self, order: np.ndarray, batch_size: int, key: int | None) -> Iterator[Tensor]:
        """Yield the images (B, H, W, 3) uint8 of the samples in `order`: randomly cropped by `key`, or their centres.

        A batch is overwritten soon after the next one was asked for.
        """
        loader = self._loader(key is not None)
        loader.batch_size = batch_size
        loader.traversal_order.order = order.astype(np.uint64) + np.uint64((key or 0) << INDEX_BITS)
        batches = iter(loader)
        try:
            while True:
                while batches.output_queue.empty():  # FFCV itself waits for ever when its thread has ended by an error
                    if not batches.is_alive() and batches.output_queue.empty():
                        raise RuntimeError(f"{self.beton.path}: FFCV's thread ended; its error is printed above")
                    time.sleep(MOMENT)
                images = next(batches, None)
                if images is None:
                    return
                yield images[0]
        finally:
            batches.close()
            while batches.is_alive():  # it may wait to hand over what nobody takes any more
                with contextlib.suppress(queue.Empty):
                    batches.output_queue.get_nowait()
                batches.join(MOMENT)
            loader.graph.give_back(batch_size, batches.memory_allocations)

    def _loader(self, is_training: bool) -> Loader:
        if is_training not in self.loaders:
            share = None if is_training else self.center_share
            pipeline: list[Any] = [_Decoder(self.resolution, share), ToTensor()]
            if self.device.type == "cuda":
                pipeline.append(ToDevice(self.device, non_blocking=True))
            loader = Loader(
                str(self.beton.path), 1, num_workers=torch.get_num_threads(), order=OrderOption.SEQUENTIAL,
                drop_last=False, pipelines={"image": pipeline, "label": None}, batches_ahead=AHEAD, seed=0,
            )  # fmt: skip
            loader.traversal_order = _GivenOrder(loader)  # version 1.0.2 takes no order of one's own
            _keep_memory(loader)
            self.loaders[is_training] = loader
        return self.loaders[is_training]


def _keep_memory(loader: Loader) -> None:
    """Have a loader use its batches' memory again in the next epoch of such batches: it would take new memory for each."""
    allocate, free = loader.graph.allocate_memory, dict[int, list[Any]]()

    def take(batch_size: int, slots: int) -> Any:
        for other in set(free) - {batch_size}:
            del free[other]
        return free[batch_size].pop() if free.get(batch_size) else _touched(allocate(batch_size, slots))

    def give_back(batch_size: int, memory: Any) -> None:
        free.setdefault(batch_size, []).append(memory)

    loader.graph.allocate_memory, loader.graph.give_back = take, give_back


def _touched(memory: Any) -> Any:
    """Write to all of it, so that what it takes is seen at once."""
    if isinstance(memory, dict):
        for part in memory.values():
            _touched(part)
    elif isinstance(memory, (tuple, list)):
        for part in memory:
            _touched(part)
    elif memory is not None:
        memory[...] = 0
    return memory


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without FFCV's fast arithmetic, so that crops are Python's."""
    compiled: Callable[..., Any] = numba.njit(nogil=True)(function)
    return compiled


# Both take addresses: FFCV changes the types of its arrays after the fact, and numba then loses what it compiled for them.
def _decode_jpeg(data: int, size: int, height: int, width: int, pixels: int) -> None:
    ctypes_imdecode(data, size, height, width, pixels, height, width, 0, 0, 1, 1, False, False)


def _resize(
    pixels: int, height: int, width: int, top: int, left: int, rows: int, columns: int, target: int, side: int
) -> None:
    ctypes_resize(0, pixels, height, width, top, top + rows, left, left + columns, target, side, side)


class _GivenOrder(TraversalOrder):  # type: ignore[misc]
    """The order that was set last."""

    def __init__(self, loader: Loader) -> None:
        super().__init__(loader)
        self.order: Sequence[int] = self.indices

    def sample_order(self, epoch: int) -> Sequence[int]:
        return self.order


class _Decoder(ResizedCropRGBImageDecoder):  # type: ignore[misc]
    """Decodes a JPEG or takes raw pixels, crops, resizes by area and flips, as `draws` says for (key, index)."""

    def __init__(self, resolution: int, center_share: float | None) -> None:
        super().__init__((resolution, resolution))
        self.center_share = center_share

    @property
    def get_crop_generator(self) -> Callable[..., Any]:
        return random_resized_crop

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        """Ask for memory for batches and for whole images, as FFCV does, in Python's own integers."""
        largest = 3 * int(self.metadata["width"].max()) * int(self.metadata["height"].max())
        shape, kind = (*self.output_size, 3), np.dtype("<u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=kind)
        return state, (AllocationQuery(shape, kind), AllocationQuery((largest,), kind))

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that FFCV compiles: (indices, memory, metadata, storage) to a batch."""
        read, iterate = self.memory_read, Compiler.get_iterator()
        decode_jpeg, resize, draw, center = map(_compiled, (_decode_jpeg, _resize, random_resized_crop, center_crop))
        side, is_training, share = self.output_size[0], self.center_share is None, self.center_share or 1.0

        def decode(batch_indices: Any, memory: Any, metadata: Any, storage_state: Any) -> Any:
            destination, whole = memory
            for place in iterate(len(batch_indices)):
                entry = np.int64(batch_indices[place])
                index, key = entry & 0xFFFFFFFF, entry >> 32
                field = metadata[index]
                data = read(field["data_ptr"], storage_state)
                height, width = np.int64(field["height"]), np.int64(field["width"])
                pixels = data.ctypes.data
                if field["mode"] == JPEG:
                    pixels = whole[place].ctypes.data
                    decode_jpeg(data.ctypes.data, data.size, height, width, pixels)
                flip = False
                if is_training:
                    top, left, rows, columns, flip = draw(key, index, height, width, SCALE, RATIO)
                else:
                    top, left, rows, columns = center(height, width, share)
                resize(pixels, height, width, top, left, rows, columns, destination[place].ctypes.data, side)
                if flip:
                    destination[place] = destination[place][:, ::-1].copy()
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode
