"""CIFAR-10 and CIFAR-100, from torchvision's files or from Parquet as the Hugging Face hub stores them."""

import io
import pickle
from pathlib import Path

import numpy as np

from raylth.core.data.dataset import DATASETS, ArrayDataset, DataError, DatasetInfo

__all__ = ["cifar10", "cifar100"]

SHAPE = (3, 32, 32)
MEAN = {"cifar10": (125.31, 122.95, 113.87), "cifar100": (129.30, 124.07, 112.43)}  # of the training images, 0..255
STD = {"cifar10": (62.99, 62.09, 66.70), "cifar100": (68.17, 65.39, 70.42)}
CLASSES = {"cifar10": 10, "cifar100": 100}
LABEL_COLUMNS = {"cifar10": ("label",), "cifar100": ("fine_label", "label")}
IMAGE_COLUMNS = ("img", "image")


def cifar10(*, root: str | None, layout: str, download: bool) -> ArrayDataset:
    """Load CIFAR-10: 50,000 training and 10,000 test images, (3, 32, 32) uint8, 10 classes."""
    return _load("cifar10", root, layout, download)


def cifar100(*, root: str | None, layout: str, download: bool) -> ArrayDataset:
    """Load CIFAR-100 with its 100 fine classes: 50,000 training and 10,000 test images, (3, 32, 32) uint8."""
    return _load("cifar100", root, layout, download)


def _load(name: str, root: str | None, layout: str, download: bool) -> ArrayDataset:
    if root is None:
        raise DataError(f"data.root: {name} lies in files, so data.root must name their folder")
    if layout == "parquet":
        parts = [_read_parquet(name, Path(root), split) for split in ("train", "test")]
    elif layout == "torchvision":
        parts = [_read_torchvision(name, Path(root), train, download) for train in (True, False)]
    else:
        raise DataError(f"data.layout: {layout!r} is not a layout of {name} (known: parquet, torchvision)")
    (train_x, train_y), (test_x, test_y) = parts
    return ArrayDataset(train_x, train_y, test_x, test_y, MEAN[name], STD[name])


def _read_torchvision(name: str, root: Path, train: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
    from torchvision import datasets

    dataset_class = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        dataset = dataset_class(root=str(root), train=train, download=download)  # checks the files' MD5 first
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        expected = root / dataset_class.base_folder
        hint = "" if download else "; data.download=true fetches them"
        reason = str(error).splitlines()[0]
        raise DataError(f"{expected}: expected {name}'s files in torchvision's layout ({reason}){hint}") from error
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))  # (N, H, W, C) -> (N, C, H, W)
    return images, np.asarray(dataset.targets, dtype=np.int64)


def _read_parquet(name: str, root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(root.glob(f"**/{split}-*.parquet")) or sorted(root.glob(f"**/{split}.parquet"))
    if not files:
        raise DataError(f"{root}: expected {name}'s Parquet files named {split}-*.parquet, found none")
    images, labels = [], []
    for file in files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file}: expected a Parquet file ({str(error).splitlines()[0]})") from error
        image_column = _column(file, table.column_names, IMAGE_COLUMNS)
        label_column = _column(file, table.column_names, LABEL_COLUMNS[name])
        images.append(_decode(file, table[image_column]))
        labels.append(table[label_column].to_numpy().astype(np.int64))
    x, y = np.concatenate(images), np.concatenate(labels)
    if len(y) == 0:
        raise DataError(f"{root}: the {split} split holds no images")
    if y.min() < 0 or y.max() >= CLASSES[name]:
        raise DataError(f"{root}: labels of {name} lie in 0..{CLASSES[name] - 1}, found {y.min()}..{y.max()}")
    return x, y


def _column(file: Path, columns: list[str], accepted: tuple[str, ...]) -> str:
    for name in accepted:
        if name in columns:
            return name
    raise DataError(f"{file}: expected a column {' or '.join(accepted)}, found {', '.join(columns)}")


def _decode(file: Path, column: object) -> np.ndarray:
    """Decode a column of image structs to (N, 3, 32, 32) uint8; the bytes may be JPEG or PNG."""
    from PIL import Image

    rows = column.to_pylist()  # type: ignore[attr-defined]
    images = np.empty((len(rows), *SHAPE), dtype=np.uint8)
    for row, entry in enumerate(rows):
        try:
            pixels = np.asarray(Image.open(io.BytesIO(entry["bytes"])).convert("RGB"))
        except (OSError, TypeError, KeyError) as error:
            raise DataError(f"{file}: row {row}: expected an image as bytes ({error})") from error
        if pixels.shape != (32, 32, 3):
            raise DataError(f"{file}: row {row}: expected a 32x32 image, found {pixels.shape[1]}x{pixels.shape[0]}")
        images[row] = pixels.transpose(2, 0, 1)
    return images


for _name, _load_function in (("cifar10", cifar10), ("cifar100", cifar100)):
    DATASETS.register(_name)(
        DatasetInfo(SHAPE, CLASSES[_name], 50_000, 10_000, augment="flip_crop", from_files=True, load=_load_function)
    )
