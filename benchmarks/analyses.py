"""Analyses: a line with batch norm's statistics reset against plain runs point by point, and the report of a large sweep.

- line: 21 points between two ResNet-20 of width 1, statistics reset on 5,000 images and the network evaluated on them, 2
  threads. Plain: for every point interpolate, forward in training mode, evaluate. Its statistics come batch by batch (500
  images) where speed is compared, since that is the faster way, and from one batch of all images where values are: that is
  what a reset means.
- report: `report.html` with all figures and tables over 10,000 result rows, in a process of its own: seconds, peak memory.

    python benchmarks/analyses.py [--json FILE] [--quick]
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hardware import describe, tell
from torch import nn

from raylth.core.batchnorm import reset_bn_stats
from raylth.core.data.dataset import ArraySplit, Split
from raylth.core.interpolate import interpolate
from raylth.core.models import init_model
from raylth.core.training.allocator import keep_freed_memory
from raylth.core.training.loop import Recipe, train
from raylth.stages.endpoints import Evaluator
from raylth.store import locate
from raylth.store.tables import write_table

POINTS, BATCH = 21, 500
CHECKED = 4  # every so many points the values are compared, too


def plain_point(network: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int) -> tuple[float, float]:
    """Reset and evaluate one network as anybody would: running averages over a pass in training mode, then a second pass."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        network.train()
        for images in x.split(batch):
            network(images)
        network.eval()
        logits = torch.cat([network(images) for images in x.split(BATCH)])
    return float(F.cross_entropy(logits, y)), 100.0 * float((logits.argmax(1) != y).double().mean())


def exact_point(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """The same with the statistics of all images as one batch."""
    reset_bn_stats(network, [x])
    with torch.no_grad():
        logits = torch.cat([network.eval()(images) for images in x.split(BATCH)])
    return float(F.cross_entropy(logits, y)), 100.0 * float((logits.argmax(1) != y).double().mean())


def measure_line(images: int) -> dict[str, Any]:
    torch.set_num_threads(2)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (images,), generator=generator)
    patterns = torch.rand(10, 3, 32, 32, generator=generator)  # something to learn, so that losses are not chance
    x = (0.3 * patterns[y] + 0.7 * torch.rand(images, 3, 32, 32, generator=generator)) * 2 - 1
    split = ArraySplit(x, y)
    a, b = (init_model(seed, "resnet20", width=1, num_classes=10, in_shape=(3, 32, 32)) for seed in range(2))
    for seed, network in enumerate((a, b)):
        train(network, ArraySplit(x[:1000], y[:1000]), Recipe(2, lr=0.05), seed=seed)
    gauge = Evaluator(_Data(split), images)  # type: ignore[arg-type]
    states = [interpolate(a.state_dict(), b.state_dict(), number / (POINTS - 1)) for number in range(POINTS)]

    def network_at(state: dict[str, torch.Tensor], *, fast: bool) -> nn.Module:
        network = copy.deepcopy(a)
        network.load_state_dict(state)
        return network.to(memory_format=torch.channels_last if fast else torch.contiguous_format)

    start = time.perf_counter()
    reset = gauge.reset()
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    prepared = time.perf_counter() - start
    losses, errors, differences = [], [], []
    for number, state in enumerate(states):  # the sides alternate, point by point
        start = time.perf_counter()
        plain_point(network_at(state, fast=False), x, y, BATCH)
        middle = time.perf_counter()
        loss, error = reset(network_at(state, fast=True), 0.5)["train"][:2]
        seconds["plain"].append(middle - start)
        seconds["ours"].append(time.perf_counter() - middle)
        losses.append(loss)
        if number % CHECKED == 0:
            exact_loss, exact_error = exact_point(network_at(state, fast=False), x, y)
            differences.append(abs(loss - exact_loss))
            errors.append(abs(error - exact_error))
    ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"], strict=True)]
    return {
        "points": POINTS,
        "images": images,
        "seconds": {name: round(sum(times), 1) for name, times in seconds.items()} | {"prepared": round(prepared, 2)},
        "times_faster_median_of_points": round(statistics.median(ratios), 2),
        "times_faster_whole_line": round(sum(seconds["plain"]) / (sum(seconds["ours"]) + prepared), 2),
        "largest_difference_in_loss": max(differences),
        "largest_difference_in_error_points": max(errors),
        "points_compared": len(differences),
        "loss_from_to": [round(min(losses), 3), round(max(losses), 3)],
    }


class _Data:
    """As much of a stage's context as a gauge reads; the test split is one image, since the bar is on the training split."""

    def __init__(self, split: Split) -> None:
        self.train, self.test = split, split.take(1)


def measure_report(rows: int) -> dict[str, Any]:
    """Write a run of `rows` networks, then its report in a process of its own."""
    rng = np.random.default_rng(0)
    arms = {"lth": 66.0, "permuted": 55.0, "naive": 45.0, "random": 40.0}
    replicates, sparsities = 10, (0.5, 0.8, 0.9, 0.95, 0.97)
    rewinds = range(rows // (len(arms) * replicates * len(sparsities)))
    identity = {"run": "large-1", "sweep": "large", "dataset": "cifar10", "model": "resnet20", "width": 1.0}
    identity["status"] = "done"
    networks = [
        {**identity, "key": f"{arm}{s}{k}{r}", "stage": "sparse", "arm": arm, "sparsity": s, "rewind_epoch": k,
         "replicate": r, "seed_a": r, "seed_b": r, "test_accuracy": mean - 20 * s + k / 10 + rng.normal(), "epochs": 200 - k}
        for arm, mean in arms.items() for s in sparsities for k in rewinds for r in range(replicates)
    ]  # fmt: skip
    networks += [
        {**identity, "key": f"dense{n}{r}", "stage": "dense", "network": n, "replicate": r, "epochs": 200,
         "test_accuracy": 92.0}
        for n in "AB" for r in range(replicates)
    ]  # fmt: skip
    manifest = {
        "run": "large-1", "written": "-", "python": "-", "git_commit": None, "packages": {},
        "hardware": {"system": "-", "cpus": 2},
        "config": {"name": "large", "data": {"name": "cifar10"}, "model": {"name": "resnet20"}},
        "stages": {"sparse": {"done": len(networks)}},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store = locate(folder)
        write_table(store, "results", "large-1", networks, manifest)
        (store / "runs/large-1/manifest.json").write(json.dumps(manifest).encode())
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "raylth.report", folder], check=True, capture_output=True)
        seconds = time.perf_counter() - start
        page = (Path(folder) / "runs/large-1/report/report.html").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of the largest child: this is the only one
    return {
        "rows": len(networks), "seconds": round(seconds, 1), "peak_megabytes": round(peak / 1e3),
        "page_megabytes": round(page / 1e6, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--quick", action="store_true", help="500 images, 2,000 rows")
    options = parser.parse_args()
    report = {
        "benchmark": "analyses",
        "report": measure_report(2_000 if options.quick else 10_000),  # first: a child takes its parent's peak over
        "line": measure_line(500 if options.quick else 5000),
        "hardware": describe(),
    }
    tell(report, options.json)


if __name__ == "__main__":
    main()
