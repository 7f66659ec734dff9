"""Encoded images with labels as they lie before they are converted: a folder of classes, or Parquet."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from raylth.core.data.dataset import DataError
from raylth.core.data.parquet import IMAGE_COLUMNS, TEST, TRAIN, VALIDATION, encoded, is_hidden, split_files, whole_labels

__all__ = ["FolderSource", "ParquetSource", "Source", "open_source"]

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
FOLDERS = {"train": ("train",), "val": ("val", "validation", "test")}
WORDS: dict[str, list[tuple[str, ...]]] = {"train": [TRAIN], "val": [VALIDATION, TEST]}


class Source(Protocol):
    """Images by number. `labels` is (N,) int64; `classes` their names, where the source has names; `notes` are lines for
    whoever converts it."""

    labels: np.ndarray
    classes: list[str]
    notes: list[str]

    def read(self, index: int) -> bytes:
        """Return an encoded image."""

    def name(self, index: int) -> str:
        """Return what to call an image."""


class FolderSource:
    """A folder with a folder of images per class, as torchvision's ImageFolder and ImageNet lay them out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
        self.classes, self.files = names, list[str]()
        labels, empty, others = list[int](), list[str](), Counter[str]()
        for label, name in enumerate(self.classes):
            below = [file for file in (folder / name).rglob("*") if not is_hidden(str(file.relative_to(folder)))]
            found = sorted(str(file.relative_to(folder)) for file in below if file.suffix.lower() in SUFFIXES)
            others.update(
                file.suffix or file.name for file in below if file.suffix.lower() not in SUFFIXES and file.is_file()
            )
            self.files += found
            labels += [label] * len(found)
            empty += [] if found else [name]
        if not self.files:
            raise DataError(f"{folder}: no images; expected a folder per class with .jpg, .png, .webp or .bmp files")
        self.labels = np.array(labels, dtype=np.int64)
        left_out = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(5))
        self.notes = [f"{folder}: left out, not among {', '.join(sorted(SUFFIXES))}: {left_out}"] if others else []
        self.notes += [f"{folder}: the class {name} has no images" for name in empty]

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
            columns = [fragment.to_table(columns=["label"])["label"] for fragment in self.fragments]
        except (StopIteration, KeyError, pa.ArrowInvalid) as error:
            wanted = " or ".join(f"{name}.bytes" for name in IMAGE_COLUMNS)
            raise DataError(f"{files[0]}: expected Parquet with the columns {wanted} and label: {error}") from error
        parts = [whole_labels(column, fragment.path) for column, fragment in zip(columns, self.fragments, strict=True)]
        self.classes: list[str] = []
        self.notes: list[str] = []
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.labels = np.concatenate(parts)
        self._held: tuple[int, int, pa.ChunkedArray] | None = None  # fragment, first row, the row group's images

    def read(self, index: int) -> bytes:
        """Return an image's bytes; its row group stays in memory for the next ones."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        row = index - int(self.starts[number])
        if self._held is None or self._held[0] != number or not 0 <= row - self._held[1] < len(self._held[2]):
            self._held = number, *self._row_group(number, row)
        return encoded(self._held[2][row - self._held[1]].as_py())

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
    below = [info.path[len(path) :].lstrip("/") for info in system.get_file_info(fs.FileSelector(path, recursive=True))]
    # Both splits: they must belong together.
    parquet = dict(zip(WORDS, split_files(below, list(WORDS.values()), place), strict=True))
    folders = [Path(path) / name for name in FOLDERS[split]] if isinstance(system, fs.LocalFileSystem) else []
    folders = [folder for folder in folders if _has_classes(folder)]
    if parquet[split]:
        if folders and split == folders[0].name:
            raise DataError(
                f"{place}: {parquet[split][0]} and the folder {folders[0].name}/ belong to two data sets: keep only one"
            )
        return ParquetSource([f"{path.rstrip('/')}/{name}" for name in parquet[split]], system)
    if len(folders) > 1 and folders[1].name != "test":
        raise DataError(f"{place}: {folders[0].name}/ and {folders[1].name}/ are the same split twice: remove one of them")
    if folders:
        return FolderSource(folders[0])
    names = " or ".join(f"{name}/" for name in FOLDERS[split])
    raise DataError(f"{place}: no {split} images; expected {names} with a folder per class, or {split}*.parquet files")


def _has_classes(folder: Path) -> bool:
    """Whether a folder of images by class may be meant: one with visible folders in it, or without any Parquet file."""
    if not folder.is_dir():
        return False
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    return any(entry.is_dir() for entry in entries) or not any(entry.suffix == ".parquet" for entry in entries)
