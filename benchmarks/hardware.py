"""What every benchmark prints beside its ratios: the machine and the versions."""

import json
import multiprocessing
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torchvision

from raylth.core.precision import has_bf16


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
        "bf16_products": has_bf16(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def tell(report: dict[str, Any], path: Path | None) -> None:
    """Print a benchmark's figures as JSON, and write them to a file if one is named."""
    text = json.dumps(report, indent=1)
    print(text)
    if path:
        path.write_text(text)


def matmul_ceiling(device: str, dtype: torch.dtype, processes: int = 1) -> float:
    """Return the operations per second of large matrix products, of that many processes with one thread each together."""
    if processes == 1:
        return _matmul(device, dtype)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.starmap(_matmul, [(device, dtype, 1)] * processes))


def _matmul(device: str, dtype: torch.dtype, threads: int | None = None) -> float:
    if threads:
        torch.set_num_threads(threads)
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b, device)


def copy_ceiling(device: str) -> float:
    """Return the bytes per second, read and written, of copies that no cache holds."""
    source = torch.empty(2**30 if device == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Any, device: str, least: float = 0.5) -> float:
    """Return the seconds of one call, the least of several blocks of calls."""

    def block(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    block(3)
    calls = max(1, int(least / 5 / block(3)))
    return min(block(calls) for _ in range(5))


def report_figures(figures: list[dict[str, Any]], **more: Any) -> None:
    """Hand a step's figures to `gpu_protocol.py`, each with name, value, unit and, where there is one, a prediction."""
    print("RESULT " + json.dumps({"figures": figures, **more}), flush=True)


def interpret_triton() -> None:
    """Have Triton's kernels interpreted where TRITON_INTERPRET asks for it, as fast as that goes."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.core.training.engines.checks import set_interpreter_up

        set_interpreter_up()
