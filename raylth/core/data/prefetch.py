"""What an epoch draws is drawn while the one before it is trained, and copied to a GPU without the host waiting."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Ahead", "pinned", "to_device"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """Calls `draw(epoch)` in a thread, one epoch ahead, up to the epoch `last`; in the caller's own where not `threaded`.

    A thread is of use only where the host has time while an epoch is trained, as it has beside a GPU. What `draw` raises is
    raised when its epoch is asked for.
    """

    def __init__(self, draw: Callable[[int], T], *, last: int, threaded: bool) -> None:
        self.draw, self.last, self.threaded = draw, last, threaded
        self.coming: dict[int, Future[T]] = {}

    def __call__(self, epoch: int) -> T:
        """Return what an epoch draws, and have the next one drawn."""
        if not self.threaded:
            return self.draw(epoch)
        future = self.coming.pop(epoch, None)
        self.coming.clear()
        found = self.draw(epoch) if future is None else future.result()
        if epoch < self.last:
            thread = ThreadPoolExecutor(1)
            self.coming[epoch + 1] = thread.submit(self.draw, epoch + 1)
            thread.shutdown(wait=False)
        return found


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor in memory from which a GPU copies without the host waiting; itself for other devices."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device, behind what the device is doing."""
    return pinned(tensor, device).to(device, non_blocking=True)
