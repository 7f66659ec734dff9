"""Training on a GPU: ResNet-20 alone and in packs against a plain loop, images per second, all in one run.

The plain side is the procedure of the published code: PIL transforms in a DataLoader with 8 workers, float32, one network.
Ours has the images as uint8 on the device and augments there. CIFAR-shaped noise, batch 128; sides in turn, medians. For each
of ours: the share of the device's measured matrix-product ceiling (of the same type), the floor that its bytes set (every
activation written once and read twice, measured copies), peak memory, and that no step between an epoch's first and last
made the host wait (torch.cuda.set_sync_debug_mode). Then ResNet-50 at 224 px on synthetic images.

    python benchmarks/train_gpu.py [--packs 1 8 32] [--width 1] [--precision bf16] [--rounds 3] [--images 12800] [--json FILE]

`--device cpu` runs the same on a CPU, to try the script.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hardware import copy_ceiling, describe, matmul_ceiling, tell
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from train_cpu import BATCH_SIZE, PilImages, plain_epoch, synthetic

from raylth.core.data import ArrayDataset
from raylth.core.data.dataset import ArraySplit, Split
from raylth.core.models import init_model
from raylth.core.pack import Program
from raylth.core.precision import Precision
from raylth.core.train import Recipe, train_together

TYPES = {"float32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


class NoWaiting:
    """Makes the driver raise where the host waits for the device, from an epoch's second step to its last but one."""

    def __init__(self, device: str, steps: int) -> None:
        self.device, self.steps = device, steps

    def __call__(self, epochs: int, step: int, snapshots: Any) -> None:
        if self.device == "cuda":
            torch.cuda.set_sync_debug_mode("error" if 0 < step < self.steps - 1 else "default")


def new_network(seed: int, width: float) -> nn.Module:
    return init_model(seed, "resnet20", width=width, num_classes=10, in_shape=(3, 32, 32))


def plain_side(data: ArrayDataset, width: float, device: str, workers: int) -> Callable[[], float]:
    """Return what trains one epoch in the plain way and tells its seconds."""
    loader = DataLoader(
        PilImages(data, None),
        BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=device == "cuda",
    )
    model = new_network(0, width).to(device)
    return lambda: plain_epoch(model, loader, device)


def our_side(split: Split, width: float, size: int, precision: Precision, augment: str = "flip_crop") -> Callable[[], float]:
    """Return what trains one epoch of a pack and tells its seconds."""
    device = split.y.device.type
    program = Program([new_network(seed, width).to(device) for seed in range(size)])
    steps = -(-len(split) // BATCH_SIZE)

    def epoch() -> float:
        recipe, start = Recipe(1, lr=0.08, batch_size=BATCH_SIZE, precision=precision), time.perf_counter()
        train_together(
            program, split, recipe, seeds=list(range(size)), augment=augment, masks=[None] * size,
            on_step=NoWaiting(device, steps),
        )  # fmt: skip
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return epoch


def cost(model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Return, per image, the operations of a training step and the bytes of activations that it writes, in float32."""
    written = 0

    def count(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        nonlocal written
        if not list(module.children()):
            written += output.numel() * 4

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    for hook in hooks:
        hook.remove()
    return {"flop": counter.get_total_flops() / len(x), "activation_bytes": written / len(x)}


def measured(seconds: list[float], images: int, per_image: dict[str, float], ceilings: dict[str, float], kind: str) -> Any:
    """Return a side's rate with its share of the ceiling and of the floor that bytes set."""
    rate = images / statistics.median(seconds)
    bytes_moved = 3 * per_image["activation_bytes"] * (0.5 if kind == "bf16" else 1.0)
    return {
        "images_per_second": round(rate, 1),
        "tflops": round(rate * per_image["flop"] / 1e12, 3),
        "share_of_matmul_ceiling": round(rate * per_image["flop"] / ceilings[kind], 4),
        "share_of_copy_floor": round(rate * bytes_moved / ceilings["copy"], 4),
        "seconds": [round(value, 4) for value in seconds],
    }


def resnet50_rate(device: str, precision: Precision, batch: int, size: int) -> float:
    """Return the images per second of ResNet-50 on synthetic images that lie on the device."""
    split = ArraySplit(
        torch.randint(0, 256, (4 * batch, 3, size, size), dtype=torch.uint8, device=device),
        torch.randint(0, 1000, (4 * batch,), device=device),
        *(torch.full((3, 1, 1), 128.0, device=device) for _ in range(2)),
    )
    program, recipe = Program([resnet50().to(device)]), Recipe(1, lr=0.1, batch_size=batch, precision=precision)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        train_together(program, split, recipe, seeds=[0], masks=[None])
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return len(split) / min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--precision", default="bf16", choices=list(TYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=12800, help="images of one epoch")
    parser.add_argument("--workers", type=int, default=8, help="of the plain side")
    parser.add_argument("--resnet50", type=int, nargs=2, default=[256, 224], metavar=("BATCH", "PIXELS"))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here; --device cpu tries the script")
    data = synthetic(options.images)
    split, _ = data.splits(device)
    sides: dict[str, tuple[int, str, Callable[[], float]]] = {
        "plain": (1, "float32", plain_side(data, options.width, device, options.workers)),
        "alone, float32": (1, "float32", our_side(split, options.width, 1, "float32")),
    }
    for size in options.packs:
        sides[f"pack of {size}"] = (size, options.precision, our_side(split, options.width, size, options.precision))
    ceilings = {name: matmul_ceiling(device, TYPES[name]) for name in {"float32", options.precision}}
    ceilings["copy"] = copy_ceiling(device)
    per_image = cost(new_network(0, options.width), torch.randn(8, 3, 32, 32))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    peaks: dict[str, int] = {}
    for number in range(options.rounds + 1):  # the first round warms all sides up
        for side, (_, _, epoch) in sides.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = epoch()
            peaks[side] = torch.cuda.max_memory_allocated() if device == "cuda" else 0
            if number:
                seconds[side].append(taken)
    found = {
        side: {**measured(seconds[side], size * options.images, per_image, ceilings, kind), "peak_bytes": peaks[side]}
        for side, (size, kind, _) in sides.items()
    }
    plain = found["plain"]["images_per_second"]
    report = {
        "benchmark": f"ResNet-20 x{options.width:g} training, images per second",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "sides": found,
        "over_plain": {side: round(each["images_per_second"] / plain, 2) for side, each in found.items()},
        "per_image": per_image,
        "ceilings": {name: f"{value:.4g}" for name, value in ceilings.items()},
        "resnet50": {
            "batch": options.resnet50[0],
            "pixels": options.resnet50[1],
            "images_per_second": round(resnet50_rate(device, options.precision, *options.resnet50), 1),
        },
        "hardware": describe(),
    }
    tell(report, options.json)


if __name__ == "__main__":
    main()
