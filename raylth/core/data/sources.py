"""Encoded images with labels as they lie before they are converted: a folder of classes, or Parquet."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from raylth.core.data.dataset import DataError

__all__ = ["BrokenImage", "FolderSource", "ParquetSource", "Source", "decode", "open_source"]

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
IMAGE_COLUMNS = ("img", "image")
FOLDERS = {"train": ("train",), "val": ("val", "validation", "test")}


class BrokenImage(ValueError):
    """An image that cannot be decoded; the text names it."""


class Source(Protocol):
    """Images by number. `labels` is (N,) int64; `classes` their names, where the source has names."""

    labels: np.ndarray
    classes: list[str]

    def read(self, index: int) -> bytes:
        """Return an encoded image."""

    def name(self, index: int) -> str:
        """Return what to call an image."""


def decode(data: bytes, name: str) -> tuple[np.ndarray, bool]:
    """Return an image's pixels (H, W, 3) uint8, and whether it was something else than RGB before.

    Grey, CMYK, palettes and transparency become RGB. Raises BrokenImage for what is cut short or no image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB")), image.mode != "RGB"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenImage(f"{name}: {error}") from error


class FolderSource:
    """A folder with a folder of images per class, as torchvision's ImageFolder and ImageNet lay them out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        self.files: list[str] = []
        labels = []
        for label, name in enumerate(self.classes):
            found = sorted(
                str(file.relative_to(folder)) for file in (folder / name).rglob("*") if file.suffix.lower() in SUFFIXES
            )
            self.files += found
            labels += [label] * len(found)
        if not self.files:
            raise DataError(f"{folder}: no images; expected a folder per class with .jpg, .png, .webp or .bmp files")
        self.labels = np.array(labels, dtype=np.int64)

    def read(self, index: int) -> bytes:
        """Return a file's bytes."""
        return (self.folder / self.files[index]).read_bytes()

    def name(self, index: int) -> str:
        """Return a file's path."""
        return str(self.folder / self.files[index])


class ParquetSource:
    """Parquet files of the Hugging Face hub's kind: a column of {bytes} and a column `label`; local or in a bucket."""

    def __init__(self, files: Sequence[str], system: fs.FileSystem) -> None:
        try:
            self.fragments = list(ds.dataset(list(files), filesystem=system, format="parquet").get_fragments())
            names = self.fragments[0].physical_schema.names
            self.column = next(name for name in IMAGE_COLUMNS if name in names)
            parts = [fragment.to_table(columns=["label"])["label"].to_numpy() for fragment in self.fragments]
        except (StopIteration, KeyError, pa.ArrowInvalid) as error:
            wanted = " or ".join(f"{name}.bytes" for name in IMAGE_COLUMNS)
            raise DataError(f"{files[0]}: expected Parquet with the columns {wanted} and label: {error}") from error
        self.classes: list[str] = []
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.labels = np.concatenate(parts).astype(np.int64)
        self._held: tuple[int, int, pa.ChunkedArray] | None = None  # fragment, first row, the row group's images

    def read(self, index: int) -> bytes:
        """Return an image's bytes; its row group stays in memory for the next ones."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        row = index - int(self.starts[number])
        if self._held is None or self._held[0] != number or not 0 <= row - self._held[1] < len(self._held[2]):
            self._held = number, *self._row_group(number, row)
        data: bytes = self._held[2][row - self._held[1]].as_py()["bytes"]
        return data

    def _row_group(self, number: int, row: int) -> tuple[int, pa.ChunkedArray]:
        first = 0
        for group in self.fragments[number].split_by_row_group():
            count = group.row_groups[0].num_rows
            if row < first + count:
                return first, group.to_table(columns=[self.column])[self.column]
            first += count
        raise IndexError(row)

    def name(self, index: int) -> str:
        """Return file and row."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return f"{self.fragments[number].path}, row {index - int(self.starts[number])}"


def open_source(place: str, split: str) -> Source:
    """Open the images of a split ("train" or "val") below a folder or a bucket's prefix; DataError says what was expected."""
    system, path = fs.FileSystem.from_uri(place) if "://" in place else (fs.LocalFileSystem(), str(Path(place).absolute()))
    if system.get_file_info(path).type == fs.FileType.NotFound:
        raise DataError(f"{place}: no such folder")
    files = sorted(_parquet_files(system, path, split))
    if files:
        return ParquetSource(files, system)
    for name in FOLDERS[split]:
        if isinstance(system, fs.LocalFileSystem) and (Path(path) / name).is_dir():
            return FolderSource(Path(path) / name)
    names = " or ".join(f"{name}/" for name in FOLDERS[split])
    raise DataError(f"{place}: no {split} images; expected {names} with a folder per class, or {split}*.parquet files")


def _parquet_files(system: fs.FileSystem, path: str, split: str) -> Iterator[str]:
    for info in system.get_file_info(fs.FileSelector(path, recursive=True)):
        name = info.path.rpartition("/")[2]
        if name.endswith(".parquet") and name.startswith(FOLDERS[split]):
            yield info.path
