"""Out of memory: recognised under all names that torch and CUDA's libraries give it, and recovered from."""

import contextlib
import errno
import gc
import re
import sys
import traceback
from collections.abc import Iterator

__all__ = ["DeviceLost", "is_out_of_memory", "release_memory"]

TEXTS = re.compile(
    "|".join(
        (
            r"out of memory",  # CUDA, HIP, MPS, Triton; AcceleratorError; NCCL's "Cuda failure 'out of memory'"
            r"cudaErrorMemoryAllocation",
            r"CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)",  # the second: its handle, with its workspace, was not allocated
            r"CUDNN_STATUS_(ALLOC_FAILED|INTERNAL_ERROR_(DEVICE|HOST)_ALLOCATION_FAILED)",
            r"(CUSOLVER|CUSPARSE|CUFFT|CURAND|CUTENSOR)_(STATUS_)?(ALLOC(ATION)?_FAILED|INSUFFICIENT_RESOURCES)",
            r"failed to cuda (host )?([cm]|re)?alloc",  # NCCL, with the CUDA error only in its log
            r"DefaultCPUAllocator: (can't allocate|not enough) memory",
        )
    ),
    re.IGNORECASE,
)
NO_PLAN = "unable to find an engine to execute this computation"  # of cuDNN: none supports it, or none got its workspace
FULL = 0.05  # of a GPU's memory is free at most where the second is meant


class DeviceLost(RuntimeError):
    """A process that cannot use its GPU any more; the text names the error after which that was found."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, says that memory ran out on a GPU or on the CPU.

    torch has a class for what its caching allocator finds; what CUDA's libraries, Triton and NCCL meet is a RuntimeError
    whose text says so. The text of other classes is not looked at. torch is not imported for this.
    """
    return any(_says_so(each) for each in _causes(error))


def release_memory(error: BaseException | None = None) -> None:
    """Give back the memory that a failed computation holds.

    An error's traceback keeps the frames that it passed through, and they keep their tensors: these references are dropped,
    also those of the errors that it came from. Call this when the traceback is not needed any more. Then cycles are
    collected, and torch's cache is emptied where CUDA is in use.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        each.__traceback__ = None
        waiting += [each.__cause__, each.__context__, *(each.exceptions if isinstance(each, BaseExceptionGroup) else ())]
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # after some CUDA errors nothing works in this process any more
            torch.cuda.empty_cache()


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    of_torch = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)
    if of_torch is not None and isinstance(error, of_torch):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return TEXTS.search(str(error)) is not None or (NO_PLAN in str(error) and _gpu_is_full())


def _gpu_is_full() -> bool:
    """Return whether next to nothing is left of the GPU's memory."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    free, total = torch.cuda.mem_get_info()
    return bool(free < FULL * total)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the one that it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__
