"""Writes FFCV's .beton files from other layouts: estimated, written to the side, verified, then put in place."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raylth.core.data.dataset import DataError
from raylth.core.data.decode import BrokenImage, decode
from raylth.core.data.streamed.beton import HEADER, JPEG, SAMPLE, Beton
from raylth.core.data.streamed.sources import Source

__all__ = ["Encoding", "convert", "estimate_bytes", "is_converted"]

PROBES = 64  # images by which the file's size is estimated
CHECKED = 200  # samples that are decoded and compared when the file is written
BROKEN_LABEL = -1  # of a sample that is taken out again, by its number: sources have labels from 0
CHUNK = 100  # images that a process takes at a time


@dataclass(frozen=True)
class Encoding:
    """How images are stored: longest side, share as JPEG (the rest raw), JPEG quality."""

    max_side: int = 500
    jpeg_share: float = 0.5
    quality: int = 90


def estimate_bytes(source: Source, encoding: Encoding) -> int:
    """Return about how many bytes the file takes, from some of its images; those that are broken count as nothing."""
    from ffcv.fields.rgb_image import encode_jpeg, resizer

    taken = []
    for index in np.linspace(0, len(source.labels) - 1, PROBES).astype(int):
        try:
            pixels = resizer(decode(source.read(int(index)), "")[0], encoding.max_side)
        except BrokenImage:
            continue
        jpeg = len(encode_jpeg(pixels, encoding.quality)) if encoding.jpeg_share else 0
        taken.append(encoding.jpeg_share * jpeg + (1 - encoding.jpeg_share) * pixels.nbytes)
    return int(len(source.labels) * (np.mean(taken) if taken else 0)) + 2**23


def is_converted(path: Path, source: Source, encoding: Encoding) -> bool:
    """Whether a file was written and verified, from as many images, with the same labels and encoding."""
    try:
        record = json.loads(_record(path).read_text())
        return bool(record["written_from"] == _written_from(source, encoding) and len(Beton(path)) == record["samples"])
    except (OSError, ValueError, KeyError, DataError):
        return False


def convert(
    source: Source, path: Path, encoding: Encoding, *, workers: int, most_broken: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Write a source's images to a .beton file and verify it; returns the record that lies beside it as JSON.

    Everything is written to `<path>.partial` and takes the name when it is verified (number, labels, some images against
    their source, SHA-256 of the whole), so a file of that name is whole. Images that cannot be decoded are named through
    `tell` and left out; DataError when there are more than `most_broken`, no room, or a process of the writer dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = estimate_bytes(source, encoding), shutil.disk_usage(path.parent).free
    tell(f"{path}: {len(source.labels):,} images, about {needed / 1e9:.2f} GB; {free / 1e9:.2f} GB are free")
    if needed > free:
        raise DataError(f"{path.parent}: about {(needed - free) / 1e9:.2f} GB are missing")
    partial, start = path.with_name(f"{path.name}.partial"), time.perf_counter()
    with tempfile.TemporaryDirectory() as notes:
        dataset = _Decoded(source, Path(notes) / "broken", Path(notes) / "converted")
        _write(dataset, partial, encoding, workers)
        broken, changed = dataset.broken.numbers(), len(dataset.changed.numbers())
    for index in broken[:20]:
        tell(f"broken, skipped: {source.name(index)}")
    if len(broken) > most_broken:
        partial.unlink()
        raise DataError(
            f"{len(broken)} images cannot be decoded, and at most {most_broken} may: {source.name(broken[0])} is one"
        )
    if broken:
        _take_out(partial, broken)
    kept = np.delete(np.arange(len(source.labels)), broken)
    for number in sorted(set(source.labels.tolist()) - set(source.labels[kept].tolist())):
        tell(f"no image is left of class {source.classes[number] if source.classes else number}")
    _verify(partial, source, kept, encoding)
    record = {
        "samples": len(kept),
        "broken": [source.name(index) for index in broken],
        "made_rgb": changed,
        "bytes": partial.stat().st_size,
        "sha256": _sha256(partial),
        "seconds": round(time.perf_counter() - start, 1),
        "written_from": _written_from(source, encoding),
    }
    os.replace(partial, path)
    _record(path).write_text(json.dumps(record, indent=1))
    return record


class _Notes:
    """Numbers that several processes note in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, number: int) -> None:
        with self.path.open("ab", buffering=0) as file:  # one write of a few bytes: lines of processes do not mix
            file.write(f"{number}\n".encode())

    def numbers(self) -> list[int]:
        return sorted({int(line) for line in self.path.read_text().split()}) if self.path.exists() else []


class _Decoded:
    """A source as FFCV's writer takes it: pixels and label by number."""

    def __init__(self, source: Source, broken: Path, changed: Path) -> None:
        self.source, self.broken, self.changed = source, _Notes(broken), _Notes(changed)

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        try:
            pixels, is_changed = decode(self.source.read(int(index)), self.source.name(int(index)))
        except BrokenImage:
            self.broken.add(int(index))
            return np.zeros((1, 1, 3), np.uint8), BROKEN_LABEL
        if is_changed:
            self.changed.add(int(index))
        return pixels, int(self.source.labels[index])


def _write(dataset: _Decoded, path: Path, encoding: Encoding, workers: int) -> None:
    """Have FFCV write; DataError when one of its processes dies, for which it would wait for ever."""
    import ffcv.writer
    from ffcv.fields import IntField, RGBImageField

    mode = {0.0: "raw", 1.0: "jpg"}.get(encoding.jpeg_share, "proportion")
    image = RGBImageField(mode, encoding.max_side, jpeg_quality=encoding.quality, compress_probability=encoding.jpeg_share)
    # A raw image is one allocation, and a page must hold it.
    page = 1 << max(23, int(3 * encoding.max_side**2 - 1).bit_length())
    writer = ffcv.writer.DatasetWriter(str(path), {"image": image, "label": IntField()}, page_size=page, num_workers=workers)
    with _watched(ffcv.writer) as started:
        try:
            writer.from_indexed_dataset(dataset, chunksize=min(CHUNK, max(1, len(dataset) // workers)))
        except BaseException as error:  # also Ctrl-C
            for process in started:
                process.kill()
            path.unlink(missing_ok=True)
            writer.metadata_sm.close()
            writer.metadata_sm.unlink()
            if isinstance(error, _Died):
                raise DataError(f"{path}: {error}") from None
            raise


class _Died(RuntimeError):
    """A process of the writer ended with an error."""


@contextlib.contextmanager
def _watched(module: Any) -> Iterator[list[Any]]:
    """Have FFCV's writer look at its processes whenever it sleeps; yields those that it starts."""
    started: list[Any] = []
    process, sleep = module.Process, module.sleep

    class Noted(process):  # type: ignore[misc,valid-type]
        def start(self) -> None:
            super().start()
            started.append(self)

    def look(seconds: float) -> None:
        for each in started:
            if each.exitcode:
                raise _Died(f"a writer process ended with status {each.exitcode}")
        sleep(seconds)

    module.Process, module.sleep = Noted, look
    try:
        yield started
    finally:
        module.Process, module.sleep = process, sleep


def _take_out(path: Path, broken: list[int]) -> None:
    """Take the samples that could not be decoded out of a file's tables; their bytes stay where they are, unused."""
    header = np.fromfile(path, dtype=HEADER, count=1)
    beton = Beton(path)
    kept = np.delete(np.arange(len(beton)), broken)
    samples = np.zeros(len(kept), dtype=SAMPLE)
    samples["image"], samples["label"] = beton.stored[kept], beton.labels[kept]
    header["samples"] = len(kept)
    with path.open("r+b") as file:
        file.write(header.tobytes())
        file.seek(beton.samples_at)
        file.write(samples.tobytes())


def _verify(path: Path, source: Source, kept: np.ndarray, encoding: Encoding) -> None:
    """Raise DataError unless a file has the samples of a source, in order: labels all, some images byte for byte."""
    from ffcv.fields.rgb_image import encode_jpeg, resizer

    beton = Beton(path)
    if not np.array_equal(beton.labels, source.labels[kept]):
        raise DataError(f"{path}: was written with {len(beton)} labels that differ from the {len(kept)} of its source")
    for place in np.unique(np.linspace(0, len(kept) - 1, CHECKED).astype(int)).tolist():
        name = source.name(int(kept[place]))
        pixels = np.ascontiguousarray(resizer(decode(source.read(int(kept[place])), name)[0], encoding.max_side))
        is_jpeg = beton.stored["mode"][place] == JPEG
        expected = encode_jpeg(pixels, encoding.quality) if is_jpeg else pixels.reshape(-1)
        if not np.array_equal(beton.encoded(place), expected):
            raise DataError(f"{path}: sample {place} is not what {name} is stored as")


def _written_from(source: Source, encoding: Encoding) -> dict[str, Any]:
    labels = hashlib.sha256(source.labels.tobytes()).hexdigest()
    return {"images": len(source.labels), "labels_sha256": labels, **asdict(encoding)}


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
