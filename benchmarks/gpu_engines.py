"""Steps of `gpu_protocol.py`: images per second of every engine, ResNet-50, and what each precision costs in accuracy.

    python benchmarks/gpu_engines.py engines|stacked|resnet50|precision [--device cpu] [--reduced]

Everything runs as a sweep's worker runs it (`make_context`: deterministic kernels, float32 that is float32). The plain side
is the procedure of the published code: PIL transforms in a DataLoader with 8 workers, torch's own settings, one network.
"""

import argparse
import contextlib
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hardware import copy_ceiling, interpret_triton, matmul_ceiling, report_figures
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50 as torchvision_resnet50
from train_cpu import BATCH_SIZE, PilImages, plain_epoch, synthetic

from raylth.core.data import ArrayDataset, cifar10
from raylth.core.data.dataset import ArraySplit, Split
from raylth.core.models import init_model
from raylth.core.precision import Precision
from raylth.core.training.engine_proof import prove
from raylth.core.training.engines.program import EngineName, make_program
from raylth.core.training.loop import evaluate_together, train_together
from raylth.core.training.recipe import Recipe
from raylth.stages import make_context
from raylth.store import Store


@dataclass(frozen=True)
class Side:
    """One way to train: an engine, how many networks together, and how."""

    engine: EngineName
    size: int
    precision: Precision = "bf16"
    width: float = 1.0
    streams: int = 4
    wave: int = 8
    predicted: str = ""  # images a second, H200

    @property
    def name(self) -> str:
        """What the summary calls it."""
        more = f", waves of {self.wave}" if self.engine == "stacked" and self.size > 1 else ""
        more += f", {self.streams} streams" if self.engine != "eager" and self.size > 1 else ""
        wide = f" x{self.width:g}" if self.width != 1 else ""
        return f"{self.engine}{wide}, {self.size} in {self.precision}{more}"


SIDES = [  # in the order in which they matter, should time run out
    Side("eager", 1, "float32"),
    Side("eager", 1, predicted="20,000 to 25,000"),
    Side("graph", 1, predicted="90,000 to 130,000"),
    Side("graph", 8, predicted="220,000 to 350,000"),
    Side("graph", 32, predicted="220,000 to 350,000"),
    Side("stacked", 1, predicted="180,000 to 250,000"),
    Side("stacked", 32, wave=8, predicted="450,000 to 700,000"),
    Side("stacked", 32, wave=32),
    Side("eager", 32, predicted="60,000 to 250,000"),
    Side("compiled", 1, predicted="150,000 to 220,000"),
    Side("compiled", 32, predicted="300,000 to 480,000"),
    Side("graph", 32, streams=8),
    Side("graph", 32, streams=2),
    Side("graph", 32, streams=1),
    Side("stacked", 32, wave=4),
    Side("stacked", 32, wave=1),
    Side("graph", 8, width=4),
    Side("stacked", 8, width=4),
    Side("compiled", 8),
]
REDUCED = [
    Side("eager", 1, "float32", 0.25), Side("eager", 2, "float32", 0.25), Side("graph", 1, "float32", 0.25),
    Side("graph", 2, "float32", 0.25), Side("stacked", 2, "float32", 0.25),
]  # fmt: skip


def new_network(seed: int, width: float, side: int = 32) -> nn.Module:
    return init_model(seed, "resnet20", width=width, num_classes=10, in_shape=(3, side, side))


def training_split(data: ArrayDataset, device: str) -> tuple[Split, Split]:
    context = make_context(Store("unused"), data, data_sha256="unused", device=device)
    return context.train, context.test


@contextlib.contextmanager
def no_host_wait(device: str) -> Iterator[Callable[[int, int, Any], None]]:
    """Give what makes the driver raise where the host waits, from an epoch's second step to its last but one."""
    steps = [0]

    def on_step(epochs: int, step: int, snapshots: Any) -> None:
        steps[0] = max(steps[0], step)
        inside = device == "cuda" and epochs > 0 and 0 < step < steps[0]
        torch.cuda.set_sync_debug_mode("error" if inside else "default") if device == "cuda" else None

    try:
        yield on_step
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def rate(side: Side, split: Split, epochs: int) -> dict[str, Any]:
    """Train a pack for a few epochs; returns images a second of the fastest epoch but the first, and the peak of memory."""
    device = split.y.device.type
    networks = [new_network(seed, side.width, split.in_shape[-1]).to(device) for seed in range(side.size)]
    program = make_program(networks, side.engine, wave=side.wave, streams=side.streams)
    recipe = Recipe(epochs, lr=0.08, batch_size=min(BATCH_SIZE, len(split)), precision=side.precision)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ends = [time.perf_counter()]
    with no_host_wait(device) as on_step:
        train_together(
            program, split, recipe, seeds=list(range(side.size)), augment="flip_crop", masks=[None] * side.size,
            on_epoch=lambda completed, losses: ends.append(time.perf_counter()), on_step=on_step,
        )  # fmt: skip
    taken = [end - before for before, end in itertools.pairwise(ends[1:])]
    return {
        "images_per_second": side.size * len(split) / min(taken),
        "first_epoch_seconds": ends[1] - ends[0],
        "epoch_seconds": taken,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
    }


def plain_rate(data: ArrayDataset, device: str, workers: int) -> float:
    """Return the images a second of the plain loop, torch's settings as they come: the better of two epochs."""
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = False, True
    loader = DataLoader(
        PilImages(data, None), min(BATCH_SIZE, len(data.train_y) // 2), shuffle=True, num_workers=workers,
        persistent_workers=True, pin_memory=device == "cuda",
    )  # fmt: skip
    model = new_network(0, 1.0, data.train_x.shape[-1]).to(device)
    best = math.inf
    for _ in range(3):
        taken = plain_epoch(model, loader, device)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, taken)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = flags
    return len(data.train_y) / best


def per_image(width: float, side: int) -> dict[str, float]:
    """Return what an image takes: operations of a training step, bytes of a pass over all convolutions' outputs in bf16."""
    written, model = [0], new_network(0, width, side)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: written.append(2 * output.numel()))
    x = torch.randn(2, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return {"flop": counter.get_total_flops() / len(x), "pass_bytes": sum(written) / len(x)}


def engines(device: str, reduced: bool) -> None:
    """Report images a second of torch's own engines beside the plain loop, and that no step made the host wait."""
    _measure([side for side in (REDUCED if reduced else SIDES) if side.engine != "stacked"], device, reduced)


def stacked(device: str, reduced: bool) -> None:
    """Report the same of our own kernels, which may end a process, in one of its own."""
    _measure([side for side in (REDUCED if reduced else SIDES) if side.engine == "stacked"], device, reduced)


def _measure(sides: list[Side], device: str, reduced: bool) -> None:
    is_stacked = sides[0].engine == "stacked"
    side = 4 if reduced else 32
    data = synthetic(4 if reduced else 12800)
    plain = plain_rate(data, device, workers=2 if reduced else 8) if not is_stacked else math.nan
    if reduced:
        data = ArrayDataset(data.train_x[..., :side, :side], data.train_y, data.test_x, data.test_y, data.mean, data.std)
    split, _ = training_split(data, device)
    figures = [] if is_stacked else [{"name": "the plain loop", "value": plain, "unit": "images/s"}]
    ceilings = {"copy": copy_ceiling(device), "bf16": 0.0 if reduced else matmul_ceiling(device, torch.bfloat16)}
    found: dict[str, Any] = {"plain": None if is_stacked else plain, "ceilings": ceilings}
    for each in sides:
        start = time.perf_counter()
        short = split.take(3200) if each.width > 1 else split
        try:
            one = rate(each, short, 2 if reduced else 3)
        except Exception as error:  # the other engines are to be measured all the same
            print(f"{each.name}: {type(error).__name__}: {error}")
            found[each.name] = {"error": f"{type(error).__name__}: {error}"[:500]}
            figures.append({"name": each.name, "value": "failed", "unit": type(error).__name__, "predicted": each.predicted})
        else:
            cost = per_image(each.width, side)
            one["over_plain"] = None if is_stacked else one["images_per_second"] / plain
            one["passes_if_bound_by_copies"] = ceilings["copy"] / (one["images_per_second"] * cost["pass_bytes"])
            one["share_of_products"] = (
                one["images_per_second"] * cost["flop"] / ceilings["bf16"] if ceilings["bf16"] else None
            )
            found[each.name] = {**one, "per_image": cost}
            figures.append(
                {"name": each.name, "value": one["images_per_second"], "unit": "images/s", "predicted": each.predicted}
            )
        print(f"{each.name}: {time.perf_counter() - start:.1f} s", flush=True)
        report_figures(figures, engines=found)
        if device == "cuda":
            with contextlib.suppress(RuntimeError):  # of a card that an error has left
                torch.cuda.empty_cache()
    figures += _proofs(device, reduced, ("stacked",) if is_stacked else ("graph",) if reduced else ("graph", "compiled"))
    report_figures(figures, engines=found)


def _proofs(device: str, reduced: bool, names: tuple[EngineName, ...]) -> list[dict[str, Any]]:
    """Return how far each engine is from the plain loop after 20 steps, and how far it may be."""
    figures: list[dict[str, Any]] = []
    if reduced and names == ("stacked",):
        return []  # interpreted it takes minutes; tests/core/training/engines has it of a smaller network
    for precision in ("float32",) if reduced else ("float32", "bf16"):
        for engine in names:
            networks = [new_network(seed, 0.25 if reduced else 1.0, 8 if reduced else 32).to(device) for seed in range(2)]
            recipe = Recipe(1, lr=0.08, batch_size=8 if reduced else BATCH_SIZE, precision=precision)  # type: ignore[arg-type]
            shape = (3, 8, 8) if reduced else (3, 32, 32)
            try:
                proof = prove(engine, networks, recipe, shape)
            except Exception as error:
                value, unit = "failed", f"{type(error).__name__}: {error}"[:60]
            else:
                value, unit = f"{proof.error:.2g}", f"of {proof.bound:.2g}" + (", the same bits" if proof.is_exact else "")
            figures.append({"name": f"proof of {engine} in {precision}", "value": value, "unit": unit})
    return figures


def resnet50(device: str, reduced: bool) -> None:
    """Report ResNet-50's images a second on synthetic images that lie on the device, channels last, bf16."""
    batch, side = (2, 32) if reduced else (256, 224)
    precision: Precision = "float32" if reduced else "bf16"
    images = torch.randint(0, 256, ((2 if reduced else 4) * batch, 3, side, side), dtype=torch.uint8, device=device)
    split = ArraySplit(
        images, torch.randint(0, 1000, (len(images),), device=device),
        *(torch.full((3, 1, 1), 128.0, device=device) for _ in range(2)),
    )  # fmt: skip
    context = make_context(Store("unused"), synthetic(2), data_sha256="unused", device=device)  # its settings of torch
    assert context.device == device
    figures = []
    sides: list[tuple[EngineName, str]] = [("eager", "2,400 to 2,900"), ("graph", "the same"), ("compiled", "3,000 to 3,600")]
    for engine, predicted in sides[: 2 if reduced else 3]:
        program = make_program([torchvision_resnet50().to(device)], engine)
        recipe, ends = Recipe(3, lr=0.1, batch_size=batch, precision=precision), [time.perf_counter()]
        try:
            train_together(
                program, split, recipe, seeds=[0], masks=[None],
                on_epoch=partial(_note_end, ends),
            )  # fmt: skip
            value: Any = len(split) / min(end - before for before, end in itertools.pairwise(ends[1:]))
        except Exception as error:
            print(f"{engine}: {type(error).__name__}: {error}")
            value = "failed"
        figures.append({"name": f"ResNet-50, {engine}", "value": value, "unit": "images/s", "predicted": predicted})
        report_figures(figures, batch=batch, pixels=side)


def _note_end(ends: list[float], completed: int, losses: list[float]) -> None:
    ends.append(time.perf_counter())


def precision(device: str, reduced: bool) -> None:
    """Report the test accuracy of the same networks, seeds and batches in each arithmetic, on CIFAR-10's images."""
    folder = next((f for f in (Path(".gpu/data"), Path("../shared/data/cifar10-jpeg")) if f.exists()), None)
    data = synthetic(64) if folder is None or reduced else cifar10(root=str(folder), layout="parquet", download=False)
    if reduced:
        crop = data.train_x[..., :8, :8]
        data = ArrayDataset(crop, data.train_y, crop, data.train_y, data.mean, data.std)
    train, test = training_split(data, device)
    size, epochs, width = (2, 1, 0.25) if reduced else (6, 6, 1.0)
    kinds: tuple[Precision, ...] = ("bf16", "float32") if reduced else ("bf16", "float32", "tf32")
    figures, accuracies = [], dict[str, list[float]]()
    for kind in kinds:
        networks = [new_network(seed, width, train.in_shape[-1]).to(device) for seed in range(size)]
        program, start = make_program(networks, "graph"), time.perf_counter()
        recipe = Recipe(epochs, lr=0.08, batch_size=min(BATCH_SIZE, len(train) // 2), precision=kind)
        train_together(program, train, recipe, seeds=list(range(size)), augment="flip_crop", masks=[None] * size)
        accuracies[kind] = [score.accuracy for score in evaluate_together(program, test)]
        spread = statistics.stdev(accuracies[kind]) if size > 1 else 0.0
        unit = f"% +- {spread:.2f} over {size} networks, {epochs} epochs, {time.perf_counter() - start:.0f} s"
        figures.append({"name": f"accuracy in {kind}", "value": statistics.mean(accuracies[kind]), "unit": unit})
        if kind == "float32":
            apart = [a - b for a, b in zip(accuracies["bf16"], accuracies["float32"], strict=True)]
            unit = f"points, standard error {statistics.stdev(apart) / math.sqrt(size):.2f}"
            figures.append({"name": "bf16 less float32, paired", "value": statistics.mean(apart), "unit": unit})
        report_figures(figures, accuracies=accuracies, data="CIFAR-10" if folder and not reduced else "noise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["engines", "stacked", "resnet50", "precision"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--reduced", action="store_true", help="small enough for a CPU")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
        interpret_triton()
    steps = {"engines": engines, "stacked": stacked, "resnet50": resnet50, "precision": precision}
    steps[options.step](options.device, options.reduced)


if __name__ == "__main__":
    main()
