"""Steps of `gpu_protocol.py`: the machine and its ceilings, the tests on the card, convolutions alone.

python benchmarks/gpu_machine.py machine|tests|convolutions [--device cpu] [--reduced]
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hardware import copy_ceiling, describe, interpret_triton, matmul_ceiling, report_figures
from torch import Tensor

from raylth.core.precision import has_bf16, precision, set_precision

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [  # of ResNet-20: input and output channels, side, stride
    (3, 16, 32, 1), (16, 16, 32, 1), (16, 32, 32, 2), (32, 32, 16, 1), (32, 64, 16, 2), (64, 64, 8, 1),
]  # fmt: skip


def machine(device: str, reduced: bool) -> None:
    """Report versions, the card and its driver, and what large copies and products reach."""
    kinds = {"float32": (torch.float32, "float32")}
    if device == "cuda" or has_bf16():
        kinds["bf16"] = (torch.bfloat16, "float32")
    if device == "cuda":
        kinds["tf32"] = (torch.float32, "tf32")
    copies = copy_ceiling(device) / 1e9
    figures: list[dict[str, Any]] = [
        {"name": "copies", "value": copies, "unit": "GB/s", "predicted": "4,300 H200, 3,000 H100"}
    ]
    for name, (dtype, how) in kinds.items():
        with precision(how):  # type: ignore[arg-type]
            reached = matmul_ceiling(device, dtype) / 1e12
        predicted = {"bf16": "790"} if device == "cuda" else {}
        figures.append(
            {"name": f"products in {name}", "value": reached, "unit": "TFLOP/s", "predicted": predicted.get(name, "")}
        )
    report_figures(figures, hardware=describe(), card=_card())


def _card() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,power.draw", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none"


def tests(device: str, reduced: bool) -> None:
    """Run the tests that are marked for a GPU; counts are reported as they come, and each one that fails is named."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider", "-W", "default", "-v"]
    command += ["-o", "addopts=--strict-markers -rfE"]
    counts, broken = Counter[str](), list[str]()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if found := re.match(r"(tests/gpu/\S+::.*?) (PASSED|FAILED|SKIPPED|ERROR)\b", line):
            counts[found[2]] += 1
            broken += [found[1]] if found[2] in ("FAILED", "ERROR") else []
            report_figures(
                [
                    {"name": "passed", "value": counts["PASSED"], "unit": "tests"},
                    {
                        "name": "failed",
                        "value": counts["FAILED"] + counts["ERROR"],
                        "unit": ", ".join(broken)[:200] or "tests",
                    },
                    {"name": "skipped", "value": counts["SKIPPED"], "unit": "tests"},
                ],
                failed=broken,
            )
    if process.wait() or not counts["PASSED"]:
        sys.exit(f"{len(broken)} tests failed: {', '.join(broken)[:150]}")


def convolutions(device: str, reduced: bool) -> None:
    """Time ResNet-20's convolutions in three directions: torch's own alone and in groups, and our kernels on members."""
    shapes, batch = (SHAPES[1:2], 2) if reduced else (SHAPES, 128)
    grouped, stacked = ((2,), (1, 2)) if reduced else ((8, 32), (1, 4, 32))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    rows: list[dict[str, Any]] = []
    set_precision("float32")
    for inputs, outputs, side, stride in shapes:
        what = {"shape": (inputs, outputs, side, stride)}
        side = 8 if reduced else side
        for deterministic in (True, False):
            torch.backends.cudnn.deterministic = deterministic
            for members in (1, *grouped):
                make = partial(_library, members, batch, inputs, outputs, side, stride, dtype, device)
                rows += _timed(make, device, members, deterministic=deterministic, by="library", **what)
        for members in stacked:
            make = partial(_ours, members, batch, inputs, outputs, side, stride, dtype, device)
            rows += _timed(make, device, members, deterministic=True, by="ours", **what)
        sides = [*(("library", count) for count in (1, *grouped)), *(("ours", count) for count in stacked)]
        report_figures([_sum_of(rows, *each) for each in sides], convolutions=rows, batch=batch)


def _sum_of(rows: list[dict[str, Any]], by: str, members: int) -> dict[str, Any]:
    chosen = [row for row in rows if (row["by"], row["members"], row["deterministic"]) == (by, members, True)]
    name = "ours, stacked" if by == "ours" else "library, alone" if members == 1 else "library, in groups"
    value, count = sum(row["microseconds"] for row in chosen), len({row["shape"] for row in chosen})
    return {"name": f"{name}, {members} members", "value": value, "unit": f"us a member, all directions of {count} shapes"}


def _ours(
    members: int, batch: int, inputs: int, outputs: int, side: int, stride: int, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], Any]]:
    """Return what computes our convolution of stacked members, in each direction."""
    from raylth.core.training.engines import launch

    x = torch.randn(members, batch, side, side, inputs, device=device).to(dtype)
    weight = torch.randn(members, outputs, 3, 3, inputs, device=device).to(dtype)
    shape = launch.Geometry.of(x, weight, (stride, stride), (1, 1))
    y, _, _ = launch.conv(x, weight, shape, moments=True)
    calls: dict[str, Callable[[], Any]] = {
        "forward": partial(launch.conv, x, weight, shape, moments=True),
        "to input": partial(launch.input_gradient, y, weight, shape),
        "to weight": partial(launch.weight_gradient, x, y, shape),
    }
    if inputs == 3:
        del calls["to input"]
    return calls


def _library(
    members: int, batch: int, inputs: int, outputs: int, side: int, stride: int, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], Any]]:
    """Return what computes torch's convolution of several members as groups, channels last, in each direction."""
    last = torch.channels_last
    x = torch.randn(batch, members * inputs, side, side, device=device).to(dtype, memory_format=last)
    weight = torch.randn(members * outputs, inputs, 3, 3, device=device).to(dtype, memory_format=last)
    y = F.conv2d(x, weight, None, stride, 1, 1, members)

    def backward(*wanted: bool) -> Tensor:
        found = torch.ops.aten.convolution_backward(
            y, x, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], members, [*wanted, False]
        )
        return next(each for each in found if each is not None)

    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: F.conv2d(x, weight, None, stride, 1, 1, members),
        "to input": lambda: backward(True, False),
        "to weight": lambda: backward(False, True),
    }
    if inputs == 3:
        del calls["to input"]
    return calls


def _timed(make: Callable[[], dict[str, Callable[[], Any]]], device: str, members: int, **what: Any) -> list[dict[str, Any]]:
    """Return a row for each direction that can be computed."""
    rows: list[dict[str, Any]] = []
    try:
        for direction, call in make().items():
            seconds = _median(call, device)
            rows.append({**what, "members": members, "direction": direction, "microseconds": 1e6 * seconds / members})
    except Exception as error:  # the others are to be timed all the same
        print(f"{what}, {members} members: {type(error).__name__}: {error}", flush=True)
    return rows


def _median(call: Callable[[], Any], device: str, blocks: int = 5) -> float:
    """Return the seconds of one call: the median of blocks, each of a few calls in a row, by the device's own clock."""
    call()
    if device == "cpu":
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    calls, taken = max(1, min(20, int(0.05 / (time.perf_counter() - start)))), []
    for _ in range(blocks):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(calls):
            call()
        last.record()
        last.synchronize()
        taken.append(first.elapsed_time(last) / 1e3 / calls)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["machine", "tests", "convolutions"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--reduced", action="store_true", help="small enough for a CPU")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
        interpret_triton()
    {"machine": machine, "tests": tests, "convolutions": convolutions}[options.step](options.device, options.reduced)


if __name__ == "__main__":
    main()
