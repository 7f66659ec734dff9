"""What a worker's GPUs are: which it may see, their memory, how much a stage took at most, and whether they still work."""

import os
import subprocess
from typing import Any

from raylth.core.memory import is_out_of_memory

__all__ = ["device", "is_healthy", "peak_bytes", "reset_peak", "see_only", "total_bytes"]


def see_only(ids: list[Any]) -> None:
    """Let this process see these GPUs and no other; before torch is first used. Ray does so only where it gives some."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(number) for number in ids)


def device(share: float) -> str:
    """Return torch's name of the device for a share of a GPU; RuntimeError unless exactly the GPU that was given is seen."""
    if share == 0:
        return "cpu"
    import torch

    if torch.cuda.device_count() != 1:
        raise RuntimeError(
            f"a share of one GPU was given, and torch sees {torch.cuda.device_count()} "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r})"
        )
    return "cuda"


def is_healthy() -> bool:
    """Return whether this process can still use its GPU, by running a small kernel; True where it uses none.

    After some CUDA errors (an illegal memory access, a failed assertion on the device) every later call in the process fails
    with the same error. A GPU whose memory is full is healthy.
    """
    import torch

    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except RuntimeError as error:
        return is_out_of_memory(error)
    return True


def reset_peak() -> None:
    """Begin to watch the GPU memory that this process takes."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Return the most GPU memory that torch took since `reset_peak`, and what the process needs besides; 0 without a GPU.

    What it needs besides (CUDA's context, kernels) is what the GPU misses now and torch does not hold; that is right while
    the process has the GPU to itself, and too much otherwise.
    """
    import torch

    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_reserved() + (total - free - torch.cuda.memory_reserved())


def total_bytes() -> list[tuple[str, int]]:
    """Return the name and the memory of each GPU of this machine, as its driver reports; none where there is no driver."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line.rpartition(",") for line in found.splitlines() if line.strip()]
    return [(name.strip(), int(megabytes) * 2**20) for name, _, megabytes in lines]
