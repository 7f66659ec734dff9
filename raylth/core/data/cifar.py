"""CIFAR-10 and CIFAR-100, from torchvision's files or from Parquet as the Hugging Face hub stores them."""

import contextlib
import functools
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raylth.core.data.dataset import ArrayDataset, DataError, MissingData
from raylth.core.data.decode import BrokenImage, decode
from raylth.core.data.info import DATASETS, DatasetInfo, Scale

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["cifar10", "cifar100"]

SHAPE = (3, 32, 32)
MEAN = {"cifar10": (125.31, 122.95, 113.87), "cifar100": (129.30, 124.07, 112.43)}  # of the training images, 0..255
STD = {"cifar10": (62.99, 62.09, 66.70), "cifar100": (68.17, 65.39, 70.42)}
CLASSES = {"cifar10": 10, "cifar100": 100}
LABEL_COLUMNS = {"cifar10": ("label",), "cifar100": ("fine_label", "label")}
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # its class
SPLITS = ("train", "test")


def cifar10(*, root: str | None, layout: str, download: bool, **_: object) -> ArrayDataset:
    """Load CIFAR-10: 50,000 training and 10,000 test images, (3, 32, 32) uint8, 10 classes."""
    return _load("cifar10", root, layout, download)


def cifar100(*, root: str | None, layout: str, download: bool, **_: object) -> ArrayDataset:
    """Load CIFAR-100 with its 100 fine classes: 50,000 training and 10,000 test images, (3, 32, 32) uint8."""
    return _load("cifar100", root, layout, download)


def check(name: str, *, root: str | None, layout: str, download: bool) -> None:
    """Raise DataError when files are missing and nothing fetches them; no image is read."""
    if layout == "parquet" or not download:
        found = files(name, root=root, layout=layout)
        with _blamed_on_root():
            for file in found if layout == "parquet" else ():
                _columns(name, file)


def files(name: str, *, root: str | None, layout: str) -> list[Path]:
    """Return the files that a data set is read from; DataError as `check`."""
    folder = _folder(name, root, layout)
    with _blamed_on_root():
        if layout == "parquet":
            return [file for found in _parquet_files(name, folder).values() for file in found]
        _check_torchvision(name, folder)
        return _torchvision_files(name, folder)


def _load(name: str, root: str | None, layout: str, download: bool) -> ArrayDataset:
    folder = _folder(name, root, layout)
    with _blamed_on_root():
        if layout == "parquet":
            parts = [_read_parquet(name, folder, split, found) for split, found in _parquet_files(name, folder).items()]
        else:
            parts = [_read_torchvision(name, folder, split, download) for split in SPLITS]
    (train_x, train_y), (test_x, test_y) = parts
    return ArrayDataset(train_x, train_y, test_x, test_y, MEAN[name], STD[name])


def _folder(name: str, root: str | None, layout: str) -> Path:
    if root is None:
        raise DataError(f"data.root: {name} is read from files: set data.root to their folder")
    if layout not in ("parquet", "torchvision"):
        raise DataError(f"data.layout: {layout!r} is not a layout of {name} (known: parquet, torchvision)")
    return Path(root)


@contextlib.contextmanager
def _blamed_on_root() -> Iterator[None]:
    """Put the setting that names the folder before what is wrong in it."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"data.root: {error}") from error


def _torchvision_files(name: str, root: Path) -> list[Path]:
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[name])
    return [root / kind.base_folder / file for file, *_ in (*kind.train_list, *kind.test_list, [kind.meta["filename"]])]


def _check_torchvision(name: str, root: Path) -> None:
    for file in _torchvision_files(name, root):
        if not os.path.isfile(file):
            raise MissingData(_torchvision_reason(name, file.parent, f"{file.name} is missing", download=False))


def _read_torchvision(name: str, root: Path, split: str, download: bool) -> tuple[np.ndarray, np.ndarray]:
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[name])
    if not download:
        _check_torchvision(name, root)
    try:
        dataset = kind(root=str(root), train=split == "train", download=download)  # checks the files' MD5 first
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(_torchvision_reason(name, root / kind.base_folder, reason, download)) from error
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))  # (N, H, W, C) -> (N, C, H, W)
    return images, np.asarray(dataset.targets, dtype=np.int64)


def _torchvision_reason(name: str, folder: Path, reason: str, download: bool) -> str:
    hint = "" if download else "; data.download=true fetches them"
    return f"{folder}: expected {name}'s files in torchvision's layout ({reason}){hint}"


def _parquet_files(name: str, root: Path) -> dict[str, list[Path]]:
    from raylth.core.data.parquet import TEST, TRAIN, split_files

    names = [file.relative_to(root).as_posix() for file in root.rglob("*.parquet")]
    found = dict(zip(SPLITS, split_files(names, [[TRAIN[:1]], [TEST[:1]]], str(root)), strict=True))
    for split, part in found.items():
        if not part:
            raise MissingData(f"{root}: expected {name}'s Parquet files named {split}-*.parquet, found none")
    return {split: [root / file for file in part] for split, part in found.items()}


def _read_parquet(name: str, root: Path, split: str, files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raylth.core.data.parquet import whole_labels

    images, labels = [], []
    for file in files:
        image_column, label_column = _columns(name, file)
        try:
            table = pq.read_table(file, columns=[image_column, label_column])
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file}: expected a Parquet file ({str(error).splitlines()[0]})") from error
        labels.append(whole_labels(table[label_column], str(file)))
        images.append(_decode(file, table[image_column]))
    x, y = np.concatenate(images), np.concatenate(labels)
    if len(y) == 0:
        raise DataError(f"{root}: the {split} split holds no images")
    if y.max() >= CLASSES[name]:
        raise DataError(f"{root}: labels of {name} lie in 0..{CLASSES[name] - 1}, found {y.min()}..{y.max()}")
    return x, y


def _columns(name: str, file: Path) -> tuple[str, str]:
    """Return the names of a Parquet file's columns of images and labels; reads its footer only."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raylth.core.data.parquet import IMAGE_COLUMNS

    try:
        names = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: expected a Parquet file ({str(error).splitlines()[0]})") from error
    return _column(file, names, IMAGE_COLUMNS), _column(file, names, LABEL_COLUMNS[name])


def _column(file: Path, columns: list[str], accepted: tuple[str, ...]) -> str:
    for name in accepted:
        if name in columns:
            return name
    raise DataError(f"{file}: expected a column {' or '.join(accepted)}, found {', '.join(columns)}")


def _decode(file: Path, column: "pa.ChunkedArray") -> np.ndarray:
    """Decode a column of image structs to (N, 3, 32, 32) uint8; the bytes may be JPEG or PNG."""
    from raylth.core.data.parquet import encoded

    images = np.empty((len(column), *SHAPE), dtype=np.uint8)
    for row, entry in enumerate(column.to_pylist()):
        try:
            pixels, _ = decode(encoded(entry), f"row {row}")
        except BrokenImage as error:
            raise DataError(f"{file}: row {row}: expected an image as bytes ({error})") from error
        if pixels.shape != (32, 32, 3):
            raise DataError(f"{file}: row {row}: expected a 32x32 image, found {pixels.shape[1]}x{pixels.shape[0]}")
        images[row] = pixels.transpose(2, 0, 1)
    return images


for _name, _load_function in (("cifar10", cifar10), ("cifar100", cifar100)):
    DATASETS.register(_name)(
        DatasetInfo(
            SHAPE, CLASSES[_name], 50_000, 10_000, augment="flip_crop", from_files=True, load=_load_function,
            dtype="uint8",
            check=functools.partial(check, _name),
            scale=functools.partial(Scale, "pixel values 0..255", MEAN[_name], STD[_name]),
            files=functools.partial(files, _name),
        )
    )  # fmt: skip
