"""Training input at 224 px: raylth's loaders against torchvision's ImageFolder and DataLoader, images per second.

The plain side is the usual recipe: ImageFolder, RandomResizedCrop, flip, ToTensor, Normalize in a DataLoader with 2 workers.
Ours give the same: float32, normalised, cropped and flipped by a counter. FFCV, DALI, TorchCodec and PIL over FFCV's usual
file (longest side 500, half raw, half JPEG 90) and over the same all JPEG; FFCV over 256 px raw, too. Sides in turn, each an
epoch in a process of its own with 2 threads, medians; a loader that is not installed is left out. `cpu_ms_per_image` is the
processor time of a side's processes. Then: how far each loader's pixels are from FFCV's, memory over five epochs, and what a
second process that reads the same file costs. `--images` of FOLDER (a folder per class) are linked as often as it takes.

    python benchmarks/loader.py FOLDER [--images 2560] [--rounds 3] [--json FILE]
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from hardware import describe, tell
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from raylth.core.data.info import IMAGENET_MEAN as MEAN
from raylth.core.data.info import IMAGENET_STD as STD
from raylth.core.data.streamed.beton import Beton
from raylth.core.data.streamed.convert import Encoding, convert
from raylth.core.data.streamed.dataset import CENTER_SHARE, ImageFiles
from raylth.core.data.streamed.loaders import LOADERS, is_installed, make_reader
from raylth.core.data.streamed.sources import FolderSource
from raylth.core.training.allocator import keep_freed_memory

BATCH_SIZE, PIXELS, THREADS = 128, 224, 2
DISTINCT = 320  # images whose pixels are compared
QUANTILES = (0.99, 0.999)
PACKAGES = {"ffcv": "ffcv", "dali": "nvidia-dali-cuda130", "torchcodec": "torchcodec", "pil": "pillow"}
FILES = {
    "500 px, half raw": Encoding(500, 0.5, 90),
    "500 px, all JPEG": Encoding(500, 1.0, 90),
    "256 px, raw": Encoding(256, 0.0, 90),
}
USUAL = "500 px, half raw"
SIDES = {
    f"{loader}, {file}": (loader, file)
    for file in FILES
    for loader in LOADERS
    if is_installed(loader) and (loader == "ffcv" or file != "256 px, raw")
}


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


def our_side(file: Path, count: int, loader: str) -> Callable[[int], int]:
    """Return what reads one epoch as a worker of a sweep does."""
    keep_freed_memory()  # as workers do
    found = ImageFiles(str(file), str(file), PIXELS, 1000, MEAN, STD, (count, count)).loaded_by(loader)
    train, _ = found.splits("cpu")
    return lambda epoch: sum(len(x) for x, _ in train.epoch([0], epoch, BATCH_SIZE, augment="resized_crop"))


def serve(side: str, folder: Path, count: int, pipe: Connection) -> None:
    """Read an epoch for each number that comes, until None; tell images, seconds, processor time and its memory."""
    torch.set_num_threads(THREADS)
    loader, name = SIDES.get(side, ("", ""))
    file = folder / f"{list(FILES).index(name)}.beton" if name else None
    read = plain_side(folder / "images") if file is None else our_side(file, count, loader)
    while (epoch := pipe.recv()) is not None:
        start, before = time.perf_counter(), cpu_seconds()
        found = read(epoch)
        seconds, cores = time.perf_counter() - start, cpu_seconds() - before
        pipe.send((found, seconds, cores, psutil.Process().memory_full_info().uss, shared_bytes(file)))


def cpu_seconds() -> float:
    """Return what this process and those that it started have taken of the cores."""
    return sum(sum(process.cpu_times()[:2]) for process in [psutil.Process(), *psutil.Process().children(recursive=True)])


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

    def read(self) -> tuple[int, float, float, int, int]:
        self.pipe.send(self.epoch)
        self.epoch += 1
        found: tuple[int, float, float, int, int] = self.pipe.recv()
        return found

    def end(self) -> None:
        self.pipe.send(None)


def measure(folder: Path, count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return images per second, and milliseconds of the cores for an image, by side."""
    sides = {name: Side(name, folder, count) for name in ("plain", *SIDES)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cores: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):  # the first round compiles, and brings the files into the page cache
        for name, side in sides.items():
            images, taken, of_cores, _, _ = side.read()
            if images != count:
                raise AssertionError(f"{name} read {images} images of {count}")
            if number:
                seconds[name].append(taken)
                cores[name].append(of_cores)
    for side in sides.values():
        side.end()
    return {
        "images_per_second": {name: count / statistics.median(taken) for name, taken in seconds.items()},
        "cpu_ms_per_image": {name: 1000 * statistics.median(taken) / count for name, taken in cores.items()},
    }


def measure_pixels(file: Path) -> dict[str, dict[str, float]]:
    """Return how far each loader's pixels are from FFCV's, of 255, over random crops: the mean, and quantiles."""
    beton, found = Beton(file), {}
    order = np.arange(min(len(beton), DISTINCT))
    for name in filter(is_installed, LOADERS):
        reader = make_reader(name, beton, PIXELS, CENTER_SHARE, torch.device("cpu"))
        found[name] = torch.cat([images.clone() for images in reader.batches(order, BATCH_SIZE, 99)]).numpy()
    apart = {name: np.abs(found[name].astype(np.int16) - found["ffcv"]) for name in found if name != "ffcv"}
    return {
        name: {"mean": round(float(each.mean()), 2), **{f"{q:g}": float(np.quantile(each, q)) for q in QUANTILES}}
        for name, each in apart.items()
    }


def measure_memory(folder: Path, count: int) -> dict[str, Any]:
    """Return how one process's memory grows over five epochs, and what a second one adds to the pages of the file."""
    first, second = (Side(f"ffcv, {USUAL}", folder, count) for _ in range(2))
    own = [first.read() for _ in range(7)]  # the first compiles and takes its memory
    alone = own[-1][4]
    second.read()
    both = first.read()[4] + second.read()[4]
    for side in (first, second):
        side.end()
    return {
        "own_bytes_after_each_epoch": [entry[3] for entry in own],
        "growth_over_5_epochs_percent": round(100 * (own[6][3] / own[1][3] - 1), 2),
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
        figures = measure(folder, options.images, options.rounds)
        rates = figures["images_per_second"]
        report = {
            "benchmark": f"training input at {PIXELS} px, images per second",
            "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
            "cpu_ms_per_image": {name: round(taken, 2) for name, taken in figures["cpu_ms_per_image"].items()},
            "over_plain": {name: round(rate / rates["plain"], 2) for name, rate in rates.items()},
            "pixels_from_ffcv_of_255": measure_pixels(folder / "0.beton"),
            "versions": {name: version(package) for name, package in PACKAGES.items() if is_installed(name)},
            "files": written,
            "images": options.images,
            "load_average": os.getloadavg(),  # of one minute, five and fifteen: whether the machine did other things
            **measure_memory(folder, options.images),
            "hardware": describe(),
        }
    tell(report, options.json)


if __name__ == "__main__":
    main()
