"""Training input at 224 px: raylth's loader (FFCV) against torchvision's ImageFolder and DataLoader, images per second.

The plain side is the usual recipe: ImageFolder, RandomResizedCrop, flip, ToTensor, Normalize in a DataLoader with 2 workers.
Ours gives the same: float32, normalised, cropped and flipped by a counter. FFCV's usual file (longest side 500, half raw,
half JPEG 90), all JPEG, and 256 px raw; and PIL over the usual file, which is what runs where FFCV is not installed. Sides in
turn, each an epoch in a process of its own with 2 threads, medians. Then: memory over five epochs, and what a second process
that reads the same file costs. `--images` of FOLDER (a folder per class) are linked as often as it takes.

    python benchmarks/loader.py FOLDER [--images 2560] [--rounds 3] [--json FILE]
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from hardware import describe, tell
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from raylth.core.data.info import IMAGENET_MEAN as MEAN
from raylth.core.data.info import IMAGENET_STD as STD
from raylth.core.data.streamed import dataset as streamed
from raylth.core.data.streamed.convert import Encoding, convert
from raylth.core.data.streamed.dataset import ImageFiles
from raylth.core.data.streamed.sources import FolderSource
from raylth.core.training.allocator import keep_freed_memory

BATCH_SIZE, PIXELS, THREADS = 128, 224, 2
FILES = {
    "FFCV, 500 px, half raw": Encoding(500, 0.5, 90),
    "FFCV, 500 px, all JPEG": Encoding(500, 1.0, 90),
    "FFCV, 256 px, raw": Encoding(256, 0.0, 90),
}
PIL = "PIL, 500 px, half raw"


def link_images(source: Path, target: Path, count: int) -> None:
    """Make a folder of so many images, each a link to one of the source's."""
    files = sorted(file for file in source.glob("*/*") if file.is_file())
    for number in range(count):
        file = files[number % len(files)]
        (target / file.parent.name).mkdir(parents=True, exist_ok=True)
        (target / file.parent.name / f"{number:06}{file.suffix}").symlink_to(file.absolute())


def plain_side(folder: Path) -> Callable[[int], int]:
    """Return what reads one epoch in the plain way and counts its images."""
    mean, std = ([value / 255 for value in values] for values in (MEAN, STD))
    steps = [transforms.RandomResizedCrop(PIXELS), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data = datasets.ImageFolder(str(folder), transforms.Compose([*steps, transforms.Normalize(mean, std)]))
    loader = DataLoader(data, BATCH_SIZE, shuffle=True, num_workers=2, persistent_workers=True)
    return lambda epoch: sum(len(x) for x, _ in loader)


def our_side(file: Path, count: int, with_ffcv: bool) -> Callable[[int], int]:
    """Return what reads one epoch as a worker of a sweep does."""
    keep_freed_memory()  # as workers do
    streamed.has_ffcv = lambda: with_ffcv  # type: ignore[assignment]
    found = ImageFiles(str(file), str(file), PIXELS, 1000, MEAN, STD, (count, count))
    train, _ = found.splits("cpu")
    return lambda epoch: sum(len(x) for x, _ in train.epoch([0], epoch, BATCH_SIZE, augment="resized_crop"))


def serve(side: str, folder: Path, count: int, pipe: Connection) -> None:
    """Read an epoch for each number that comes, until None; tell images, seconds and this process's own memory."""
    torch.set_num_threads(THREADS)
    names = {name: folder / f"{number}.beton" for number, name in enumerate(FILES)}
    names[PIL] = names["FFCV, 500 px, half raw"]
    read = plain_side(folder / "images") if side == "plain" else our_side(names[side], count, side != PIL)
    while (epoch := pipe.recv()) is not None:
        start = time.perf_counter()
        found = read(epoch)
        pipe.send(
            (found, time.perf_counter() - start, psutil.Process().memory_full_info().uss, shared_bytes(names.get(side)))
        )


def shared_bytes(file: Path | None) -> int:
    """Return this process's part of the pages of a file that processes have mapped: those of two are halved (PSS)."""
    if file is None:
        return 0
    return sum(part.pss for part in psutil.Process().memory_maps() if part.path == str(file))


class Side:
    """One side in a process of its own."""

    def __init__(self, name: str, folder: Path, count: int) -> None:
        self.pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(name, folder, count, theirs))
        process.start()  # no daemon: the plain side has workers
        self.epoch = 0

    def read(self) -> tuple[int, float, int, int]:
        self.pipe.send(self.epoch)
        self.epoch += 1
        found: tuple[int, float, int, int] = self.pipe.recv()
        return found

    def end(self) -> None:
        self.pipe.send(None)


def measure(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Return images per second by side."""
    sides = {name: Side(name, folder, count) for name in ("plain", *FILES, PIL)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):  # the first round compiles, and brings the files into the page cache
        for name, side in sides.items():
            images, taken, _, _ = side.read()
            if images != count:
                raise AssertionError(f"{name} read {images} images of {count}")
            if number:
                seconds[name].append(taken)
    for side in sides.values():
        side.end()
    return {name: count / statistics.median(taken) for name, taken in seconds.items()}


def measure_memory(folder: Path, count: int) -> dict[str, Any]:
    """Return how one process's memory grows over five epochs, and what a second one adds to the pages of the file."""
    first, second = (Side("FFCV, 500 px, half raw", folder, count) for _ in range(2))
    own = [first.read() for _ in range(7)]  # the first compiles and takes its memory
    alone = own[-1][3]
    second.read()
    both = first.read()[3] + second.read()[3]
    for side in (first, second):
        side.end()
    return {
        "own_bytes_after_each_epoch": [entry[2] for entry in own],
        "growth_over_5_epochs_percent": round(100 * (own[6][2] / own[1][2] - 1), 2),
        "file_pages_of_one_process": alone,
        "file_pages_of_two_processes": both,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images, a folder per class")
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        link_images(options.folder, folder / "images", options.images)
        source, written = FolderSource(folder / "images"), {}
        for number, (name, encoding) in enumerate(FILES.items()):
            path = folder / f"{number}.beton"
            record = convert(source, path, encoding, workers=2, most_broken=0, tell=lambda line: None)
            written[name] = {"bytes": record["bytes"], "seconds": record["seconds"]}
        rates = measure(folder, options.images, options.rounds)
        report = {
            "benchmark": f"training input at {PIXELS} px, images per second",
            "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
            "over_plain": {name: round(rate / rates["plain"], 2) for name, rate in rates.items()},
            "files": written,
            "images": options.images,
            **measure_memory(folder, options.images),
            "hardware": describe(),
        }
    tell(report, options.json)


if __name__ == "__main__":
    main()
