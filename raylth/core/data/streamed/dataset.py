"""Data sets whose images stay in .beton files: read and decoded a batch at a time, by one of several loaders."""

import dataclasses
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from raylth.common.paths import expanded
from raylth.common.seeding import derive_seed
from raylth.core.data.dataset import WHOLE, DataError, Dataset, Drawn, Place, Split, anywhere, normalisation, part_of
from raylth.core.data.prefetch import to_device
from raylth.core.data.streamed.beton import Beton
from raylth.core.data.streamed.files import copy, is_remote, locate_file
from raylth.core.data.streamed.loaders import AUTO, Reader, chosen_loader, make_reader
from raylth.core.data.subset import stratified_order

__all__ = ["CENTER_SHARE", "ImageFiles", "StreamedSplit", "stage"]

CENTER_SHARE = 224 / 256  # of the shorter side, in evaluation
KEYS = 2**31  # of epochs' draws


@dataclass(frozen=True)
class ImageFiles(Dataset):
    """Two .beton files. `resolution` is the side of training and evaluation crops, `mean` and `std` are in 0..255."""

    train: str
    test: str
    resolution: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole: tuple[int, int]  # samples that the files have where no number is asked for
    num_train: int | None = None  # samples of each; None: all
    num_test: int | None = None
    seen: tuple[str, ...] = ()  # fingerprints of the files where the sweep was started; other machines must have the same
    staging: str | None = None  # folder of each machine to which the files are copied before they are read
    loader: str = AUTO  # what decodes the images, or "auto": the fastest that a machine has; no part of the fingerprint

    @property
    def bytes(self) -> int:
        """What both files take."""
        return sum(Beton(path).size for path in (self.train, self.test))

    def subset(self, num_train: int | None, num_test: int | None) -> "ImageFiles":
        """Keep this many samples of each split (None: all), the first of its `stratified_order`.

        Raises DataError when a file has fewer, or labels beyond the classes.
        """
        asked, found = (("train", self.train, num_train), ("test", self.test, num_test)), list[str]()
        for (name, path, wanted), whole in zip(asked, self.whole, strict=True):
            beton = Beton(path)
            if wanted is None and len(beton) != whole:
                words = f"{path} has {len(beton):,} samples, and the whole set {whole:,}"
                raise DataError(f"data.num_{name}: {words}: set it to {len(beton)} if these are meant")
            if wanted is not None and wanted > len(beton):
                raise DataError(f"data.num_{name}: {wanted} asked for, but {path} has {len(beton)} samples")
            for label in (int(beton.labels.max(initial=0)), int(beton.labels.min(initial=0))):
                if not 0 <= label < self.num_classes:
                    raise DataError(
                        f"data.root: {path} has the label {label}, and there are {self.num_classes} classes, from 0"
                    )
            found.append(beton.fingerprint())
        return dataclasses.replace(self, num_train=num_train, num_test=num_test, seen=tuple(found))

    def staged(self, folder: str | None) -> "ImageFiles":
        """Have the files copied to a folder of each machine before they are read; a bucket's must be, else DataError."""
        if folder is None and is_remote(self.train):
            raise DataError(f"data.root: {self.train} is in a bucket: set resources.staging, a folder on each machine's disk")
        if folder is not None:
            try:
                is_filled_in = expanded(folder) == folder
            except ValueError as error:
                raise DataError(f"resources.staging: {error}") from error
            folder = str(Path(folder).absolute()) if is_filled_in else folder  # each machine has a home of its own
        return dataclasses.replace(self, staging=folder)

    def loaded_by(self, loader: str) -> "ImageFiles":
        """Have the images decoded by the loader of that name, or "auto"; DataError when this machine does not have it."""
        chosen_loader(loader)
        return dataclasses.replace(self, loader=loader)

    def fingerprint(self) -> str:
        """Return a SHA-256 of both files' tables (sizes, labels, places), and of how they are read."""
        digest = hashlib.sha256(f"{self.resolution} {self.num_train} {self.num_test} {CENTER_SHARE}".encode())
        for found in self.seen or [Beton(path).fingerprint() for path in (self.train, self.test)]:
            digest.update(found.encode())
        return digest.hexdigest()

    def splits(self, device: str) -> tuple[Split, Split]:
        """Open both files, or their copies on this machine."""
        paths = (self.train, self.test)
        train, test = (Beton(stage(path, self.staging) if self.staging else path) for path in paths)
        for file, expected in zip((train, test), self.seen, strict=False):
            if file.fingerprint() != expected:
                raise DataError(f"data.root: {file.path} is not the same file on this machine as where the sweep was started")
        return self._open(train, "train", self.num_train, device), self._open(test, "test", self.num_test, device)

    def _open(self, beton: Beton, name: str, count: int | None, device: str) -> Split:
        labels, order = torch.tensor(beton.labels), torch.from_numpy(stratified_order(beton.labels, name))
        mean, std = normalisation(self.mean, self.std, device, 4)
        where = torch.device(device)
        loader = chosen_loader(self.loader)

        def reader(resolution: int) -> Reader:
            return make_reader(loader, beton, resolution, CENTER_SHARE, where)

        places = torch.arange(len(beton))
        whole = StreamedSplit(labels.to(device), mean, std, self.resolution, cache(reader), places, order, loader)
        return whole.take(len(beton) if count is None else count)


def stage(path: str, folder: str) -> Path:
    """Copy a .beton file to a folder of this machine, once for all its processes; returns the copy, which is whole.

    `path` may be a bucket's. The first process copies while the others wait; one that dies lets the next begin again. The
    copy's name has the file's fingerprint. DataError when there is no room, or the copying fails.
    """
    source = Beton(path)
    target = Path(expanded(folder)) / f"{Path(locate_file(path)[1]).stem}-{source.fingerprint()[:16]}.beton"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when the process ends, however it ends
        if not target.exists():
            partial = target.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            if (free := shutil.disk_usage(target.parent).free) < source.size:
                raise DataError(f"resources.staging: {folder} has {free:,} bytes free, and {path} has {source.size:,}")
            try:
                copy(path, partial)
            except OSError as error:
                raise DataError(f"resources.staging: {path} was not copied to {folder}: {error}") from error
            if partial.stat().st_size != source.size:
                raise DataError(f"resources.staging: {path} was not copied completely to {folder}")
            os.replace(partial, target)
    return target


@dataclass(frozen=True)
class StreamedSplit(Split):
    """A split whose images are decoded when they are wanted. Its samples are in the order in which they lie in the file."""

    y: Tensor
    mean: Tensor | None
    std: Tensor | None
    resolution: int
    reader: Callable[[int], Reader] = field(repr=False)  # of images of a resolution
    places: Tensor  # (N,) of the samples in the file, ascending
    order: Tensor  # (N,) of the samples, stratified
    decoder: str  # the loader that decodes them here

    @property
    def loader(self) -> str | None:
        """What decodes its images."""
        return self.decoder

    @property
    def in_shape(self) -> tuple[int, ...]:
        """One sample's shape."""
        return 3, self.resolution, self.resolution

    def epoch(
        self,
        seeds: Sequence[int],
        epoch: int,
        batch_size: int,
        *,
        augment: str = "none",
        first: int = 0,
        stop: int | None = None,
        part: tuple[int, int] = WHOLE,
        drawn: Drawn | None = None,
        by_member: bool = False,
        place: Place = anywhere,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch of training, augmented by "none" or "resized_crop" (random resized crop and flip).

        The draws of a sample follow from (seed, epoch, index), so an epoch has the same images, in the same order, in any
        process and from any step on. Several members read the file once each.
        """
        steps = slice(first, stop)
        members = [self._member(seed, epoch, batch_size, augment, steps, part) for seed in seeds]
        for batches in zip(*members, strict=True):
            if len(batches) == 1:
                yield batches[0]
                continue
            axis = 0 if by_member else 1
            yield (
                torch.stack([x for x, _ in batches], dim=axis).flatten(0, 1),
                torch.stack([y for _, y in batches], dim=axis).flatten(),
            )

    def _member(
        self, seed: int, epoch: int, batch_size: int, augment: str, steps: slice, part: tuple[int, int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        order = torch.randperm(len(self), generator=generator)
        batches = [batch[part_of(len(batch), part)] for batch in order.split(batch_size)[steps]]
        key = derive_seed(seed, "augment", epoch) % KEYS if augment == "resized_crop" else None
        return self._read(batches, key)

    def batches(self, batch_size: int, part: tuple[int, int] = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the centres of all images, in order."""
        return self._read(list(torch.arange(len(self))[part_of(len(self), part)].split(batch_size)), None)

    def resized(self, side: int) -> Split:
        """Return the same images at another resolution."""
        return dataclasses.replace(self, resolution=side)

    def take(self, count: int) -> Split:
        """Return `count` samples: the first of the split's `stratified_order`."""
        kept = self.order[:count].sort().values
        order = torch.searchsorted(kept, self.order[:count])
        return dataclasses.replace(self, y=self.y[kept.to(self.y.device)], places=self.places[kept], order=order)

    def _read(self, batches: Sequence[Tensor], key: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of batches of indices that are equally large, but for the last, which may have none."""
        batch_size = max((len(batch) for batch in batches), default=0)
        decoded = (
            self.reader(self.resolution).batches(self.places[torch.cat(list(batches))].numpy(), batch_size, key)
            if batch_size
            else iter(())
        )
        for index in batches:
            images = next(decoded) if len(index) else torch.empty((0, *self.in_shape[1:], 3), dtype=torch.uint8)
            on_device = images if images.is_cuda else to_device(images, self.y.device)
            x = self.normalise(on_device.permute(0, 3, 1, 2))  # channels last, as they were decoded
            yield x, self.y.index_select(0, to_device(index, self.y.device))
