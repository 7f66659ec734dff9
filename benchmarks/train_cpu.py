"""ResNet-20 training on the CPU: raylth's loop against a plain one, images per second, both in one run.

The plain side is the procedure of the published code: torchvision's PIL transforms in a DataLoader with 2 workers, float32,
torch's defaults, and activations that are not computed in place. Both train the same network from the same weights with
batch 128 and 2 threads on CIFAR-shaped images, each in a process of its own, in turn, several times; the ratio is that
of the medians. One side waits while the other trains. On a processor with bf16 products raylth's loop in bf16 is a third.
`--same-module` gives the plain side raylth's own module, too: the ratio is then that of the loops and the input alone.

    python benchmarks/train_cpu.py [--rounds 5] [--images 5120] [--parquet FOLDER] [--same-module] [--json FILE]
"""

import argparse
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.fx
import torch.nn.functional as F
from hardware import describe, tell
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from raylth.core.data import ArrayDataset, cifar10
from raylth.core.data.cifar import MEAN, STD
from raylth.core.models import init_model
from raylth.core.precision import Precision, has_bf16
from raylth.core.training.loop import Recipe, train
from raylth.stages import make_context
from raylth.store import Store

BATCH_SIZE = 128


class PilImages(Dataset[tuple[torch.Tensor, int]]):
    """One image at a time through PIL and the transforms: from an array, or from JPEG bytes where the data set has them."""

    def __init__(self, data: ArrayDataset, encoded: list[bytes] | None) -> None:
        self.images = data.train_x.transpose(0, 2, 3, 1)  # (N, H, W, C) uint8
        self.encoded = encoded
        self.labels = data.train_y
        mean, std = ([value / 255 for value in values] for values in (data.mean, data.std))
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.encoded is None:
            image = Image.fromarray(self.images[index])
        else:
            image = Image.open(io.BytesIO(self.encoded[index])).convert("RGB")
        return self.transform(image), int(self.labels[index])


def encoded_images(folder: str, count: int) -> list[bytes]:
    """Read the first training images of a Parquet data set as they are stored."""
    file = sorted(Path(folder).glob("**/train*.parquet"))[0]
    column = pq.read_table(file, columns=["img"])["img"].slice(0, count)
    return [entry["bytes"] for entry in column.to_pylist()]


def synthetic(images: int) -> ArrayDataset:
    """CIFAR-shaped noise: neither side's speed depends on what is in a picture."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    y = generator.integers(0, 10, images)
    return ArrayDataset(x, y, x[:1], y[:1], MEAN["cifar10"], STD["cifar10"])


def load(options: argparse.Namespace) -> tuple[ArrayDataset, list[bytes] | None]:
    """Return the images as arrays, and as they are stored where they come from files."""
    if not options.parquet:
        return synthetic(options.images), None
    data = cifar10(root=options.parquet, layout="parquet", download=False).subset(options.images, None)
    return data, encoded_images(options.parquet, options.images)


def new_model() -> torch.nn.Module:
    return init_model(0, "resnet20", num_classes=10, in_shape=(3, 32, 32))


def plain_model() -> torch.nn.Module:
    """Return the same network with the same weights, its activations computed out of place as the usual code has them."""
    model = new_model()
    plain = torch.fx.symbolic_trace(new_model())
    for node in plain.graph.nodes:
        if node.target is torch.relu_:
            node.target = torch.relu
    plain.recompile()
    x = torch.rand(4, 3, 32, 32)
    if not torch.equal(plain(x), model(x)):
        raise AssertionError("the two sides do not train the same network")
    return plain


def plain_epoch(model: torch.nn.Module, loader: DataLoader[tuple[torch.Tensor, int]], device: str = "cpu") -> float:
    """Train one epoch in the plain way; returns seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.08, momentum=0.9, weight_decay=5e-4)
    model.train()
    start = time.perf_counter()
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.to(device, non_blocking=True)), y.to(device, non_blocking=True))
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - start


def plain_side(options: argparse.Namespace) -> Callable[[int], float]:
    """Set the plain side up; returns what trains one epoch and tells its seconds."""
    data, encoded = load(options)
    loader: DataLoader[tuple[torch.Tensor, int]] = DataLoader(
        PilImages(data, encoded), BATCH_SIZE, shuffle=True, num_workers=2, persistent_workers=True
    )
    model = new_model() if options.same_module else plain_model()
    return lambda number: plain_epoch(model, loader)


def raylth_side(options: argparse.Namespace, precision: Precision = "float32") -> Callable[[int], float]:
    """Set raylth's side up as a worker of a sweep does."""
    data, _ = load(options)
    context = make_context(Store("unused"), data, data_sha256="unused")
    model, recipe = new_model(), Recipe(1, lr=0.08, batch_size=BATCH_SIZE, precision=precision)

    def epoch(number: int) -> float:
        start = time.perf_counter()
        train(model, context.train, recipe, seed=number, augment="flip_crop")
        return time.perf_counter() - start

    return epoch


SIDES: dict[str, Callable[[argparse.Namespace], Callable[[int], float]]] = {"plain": plain_side, "raylth": raylth_side}
if has_bf16():
    SIDES["raylth, bf16"] = partial(raylth_side, precision="bf16")


def serve(side: str, options: argparse.Namespace, pipe: Connection) -> None:
    """Run one side in a process of its own: an epoch for each number that comes, until None."""
    torch.set_num_threads(2)
    epoch = SIDES[side](options)
    while (number := pipe.recv()) is not None:
        pipe.send(epoch(number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=5120, help="images of one epoch")
    parser.add_argument("--parquet", help="folder of CIFAR-10 as Parquet; without it, noise of the same shape")
    parser.add_argument("--same-module", action="store_true", help="the plain side trains raylth's own module, too")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(2)
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for side in SIDES:
        pipes[side], theirs = context.Pipe()
        context.Process(target=serve, args=(side, options, theirs)).start()  # no daemon: the plain side has workers
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(options.rounds + 1):  # the first round warms both sides up
        for side, pipe in pipes.items():
            pipe.send(number)
            taken = pipe.recv()
            if number:
                seconds[side].append(taken)
    for pipe in pipes.values():
        pipe.send(None)
    speed = {side: options.images / statistics.median(times) for side, times in seconds.items()}
    report = {
        "benchmark": "ResNet-20 training on the CPU, images per second",
        "input": "JPEG from Parquet" if options.parquet else "arrays",
        "plain_side": "raylth's module" if options.same_module else "out of place, as published",
        "images_per_second": {side: round(value, 1) for side, value in speed.items()},
        "ratio": round(speed["raylth"] / speed["plain"], 3),
        "ratio_bf16": round(speed["raylth, bf16"] / speed["plain"], 3) if "raylth, bf16" in speed else None,
        "rounds": options.rounds,
        "images_per_epoch": options.images,
        "seconds": {side: [round(value, 3) for value in times] for side, times in seconds.items()},
        "hardware": describe(),
    }
    tell(report, options.json)


if __name__ == "__main__":
    main()
