"""What every benchmark prints beside its ratios: the machine and the versions."""

import os
import platform
from typing import Any

import torch
import torchvision


def describe() -> dict[str, Any]:
    """Return processor, cores, threads and versions as plain data."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    except OSError:
        pass
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
