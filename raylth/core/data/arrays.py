"""Data sets that are arrays already: in one .npz file (`data: {arrays: FILE}`), or in somebody else's data set."""

import functools
import hashlib
import operator
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from raylth.common.registry import UnknownName
from raylth.core.data.check import as_array
from raylth.core.data.dataset import ArrayDataset, DataError, MissingData
from raylth.core.data.info import CHANNELS, DATASETS, DatasetInfo, Scale
from raylth.core.data.parquet import IMAGE_COLUMNS

__all__ = ["ARRAYS", "from_file", "wrapped"]

Arrays = dict[str, np.ndarray]  # train_x, train_y, test_x, test_y


class Samples(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


ARRAYS = "arrays"  # the data set's name in keys, where the file's content says which
ENDING = ".npz"
MODES = ("RGB", "L")  # of PIL images
NAMES = ("train_x", "train_y", "test_x", "test_y")
OTHER = ("x_train", "y_train", "x_test", "y_test")  # as Keras names them


def from_file(name: str) -> DatasetInfo | None:
    """Return what is known of the data set in a .npz file; None for a name without that ending.

    The file holds train_x, train_y, test_x and test_y, or x_train and so on: samples (N, *shape), labels (N,) of whole
    numbers from 0. Images of uint8, (N, C, H, W), (N, H, W, C) or (N, H, W), are normalised by channel with mean and
    deviation of the training split; other samples go into a network as they are. Raises UnknownName, one line, for a file
    that cannot be read so; its `load` raises DataError where the file has changed since.
    """
    if not name.endswith(ENDING):
        return None
    path = Path(name)
    try:
        found = path.stat()
        return _from_file(path, found.st_size, found.st_mtime_ns, found.st_ino)
    except FileNotFoundError as error:
        raise UnknownName(f"the file {name}: there is no such file") from error
    except (OSError, ValueError) as error:  # DataError, too
        raise UnknownName(f"the file {name}: {' '.join(str(error).split())}") from error


@functools.lru_cache(maxsize=8)
def _from_file(path: Path, *_version: int) -> DatasetInfo:
    content = _hash(path)

    def load() -> Arrays:
        if _hash(path) != content:
            raise DataError(f"data.arrays: {path} has changed since the sweep was planned: start it again")
        return _read(path)

    return _info(_read(path), load, "none", content)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def wrapped(train: Samples, test: Samples, *, augment: str = "none") -> DatasetInfo:
    """Return the data set of two map-style data sets, such as torchvision's and those of Hugging Face's `datasets`.

    A sample is a pair (input, label), or a mapping with "image" or "img", and "label"; inputs are PIL images, tensors or
    arrays of one shape, labels whole numbers from 0. All are read at once and kept in memory; what is normalised is as for
    `from_file`. `augment` is as in `DatasetInfo`. Raises DataError, one line, for samples that are not so.
    """
    found: Arrays = {}
    for split, samples in (("train", train), ("test", test)):
        if not len(samples):
            raise DataError(f"{split}: it has no sample")
        x, y = zip(*(_pair(samples[index], f"{split}[{index}]") for index in range(len(samples))), strict=True)
        shapes, types = (list(dict.fromkeys(getattr(each, what) for each in x)) for what in ("shape", "dtype"))
        if len(shapes) > 1:
            is_size = len(shapes[0]) == len(shapes[1])
            hint = "resize them to one" if is_size else "give all images one mode, convert('RGB') or convert('L')"
            raise DataError(f"{split}: samples have the shapes {shapes[0]} and {shapes[1]}: {hint}")
        if len(types) > 1:
            raise DataError(f"{split}: samples are {types[0]} and {types[1]}: give all of them one type")
        found[f"{split}_x"], found[f"{split}_y"] = _with_channels_first(np.stack(x)), np.asarray(y)
    _check(found)
    return _info(found, lambda: found, augment)


def _info(found: Arrays, load: Callable[[], Arrays], augment: str, content: str | None = None) -> DatasetInfo:
    x, is_image = found["train_x"], found["train_x"].dtype == np.uint8
    scale = Scale("pixel values 0..255", *_mean_and_std(x)) if is_image else Scale()
    return DatasetInfo(
        x.shape[1:],
        1 + int(max(found["train_y"].max(), found["test_y"].max())),
        num_train=len(x),
        num_test=len(found["test_x"]),
        augment=augment,
        from_files=False,
        load=lambda: ArrayDataset(**load(), mean=scale.mean, std=scale.std),
        dtype="uint8" if is_image else "float32",
        scale=lambda: scale,
        content=content,
    )


def _pair(sample: Any, what: str) -> tuple[np.ndarray, int]:
    """Return a sample's input as an array and its label; DataError for what is no such pair."""
    if isinstance(sample, Mapping):
        names = [name for name in IMAGE_COLUMNS if name in sample]
        if not names or "label" not in sample:
            raise DataError(f"{what} has {', '.join(map(str, sample))}; expected are {' or '.join(IMAGE_COLUMNS)}, and label")
        sample = sample[names[0]], sample["label"]
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise DataError(f"{what} is a {type(sample).__name__}; a pair (input, label) is expected")
    x, label = sample
    mode = getattr(x, "mode", None)  # of a PIL image; of a tensor it is a method
    if isinstance(mode, str) and mode not in MODES:
        raise DataError(f"{what} is an image of mode {mode}; {' or '.join(MODES)} is expected: convert('RGB')")
    try:
        return as_array(x, what), operator.index(label)
    except TypeError:
        raise DataError(f"{what} has the label {label!r:.40}; a whole number is expected") from None


def _read(path: Path) -> Arrays:
    """Return the four arrays, images as (N, C, H, W); DataError for what is not there."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError("one array alone; numpy.savez writes several")
            names = next((names for names in (NAMES, OTHER) if set(names) <= set(file.files)), None)
            if names is None:
                raise DataError(
                    f"has the arrays {', '.join(file.files) or 'of no name'}; expected are {', '.join(NAMES)} (or "
                    f"{', '.join(OTHER)})"
                )
            found = dict(zip(("train_x", "train_y", "test_x", "test_y"), (file[name] for name in names), strict=True))
    except FileNotFoundError:
        raise MissingData("there is no such file") from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read: {error}") from error
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise DataError("holds Python objects: save arrays of numbers") from error
        raise
    found = {name: _with_channels_first(array) if name.endswith("_x") else _flat(array) for name, array in found.items()}
    _check(found)
    return found


def _check(found: Arrays) -> None:
    if len({found[name].dtype == np.uint8 for name in ("train_x", "test_x")}) > 1:
        found_types = " and ".join(str(found[name].dtype) for name in ("train_x", "test_x"))
        raise DataError(f"train_x and test_x are {found_types}: give both as uint8, or neither")
    for name, array in found.items():
        least = 2 if name.endswith("_x") else 1
        if array.ndim < least or array.dtype.kind not in "biuf" or not array.size:
            raise DataError(f"{name} is {array.dtype} of shape {array.shape}; numbers with {least} axes or more are expected")
    shape = found["train_x"].shape
    if found["train_x"].dtype == np.uint8 and len(shape) == 4 and shape[1] not in CHANNELS:
        raise DataError(
            f"images have the shape {shape[1:]}; (C, H, W) or (H, W, C) is expected, "
            f"of {' or '.join(map(str, CHANNELS))} channels"
        )
    if found["train_x"].shape[1:] != found["test_x"].shape[1:]:
        shapes = " and ".join(str(found[name].shape[1:]) for name in ("train_x", "test_x"))
        raise DataError(f"train_x and test_x have samples of the shapes {shapes}")
    _check_labels(found)


def _check_labels(found: Arrays) -> None:
    for split in ("train", "test"):
        name, y = f"{split}_y", found[f"{split}_y"]
        if y.ndim != 1:
            raise DataError(
                f"{name} has the shape {y.shape}; a label for each sample is expected (of one-hot rows, argmax(1))"
            )
        if len(y) != len(found[f"{split}_x"]):
            raise DataError(f"{split}_x has {len(found[f'{split}_x'])} samples and {name} {len(y)} labels")
        wrong = y[~(np.isfinite(y) & (y >= 0) & (y == np.floor(y)))]
        if len(wrong):
            raise DataError(f"{name} has the label {wrong[0]}; whole numbers from 0 are expected")
    labels = np.concatenate([found["train_y"], found["test_y"]])
    largest, count = labels.max(), len(labels)
    if largest >= count:
        raise DataError(
            f"labels go to {largest} in {count} samples; whole numbers from 0 to the number of classes - 1 are expected, as "
            "numpy.unique(y, return_inverse=True)[1] gives them"
        )


def _flat(y: np.ndarray) -> np.ndarray:
    """Return labels (N,), also of (N, 1), as Keras has them."""
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def _with_channels_first(x: np.ndarray) -> np.ndarray:
    if x.ndim == 3 and x.dtype == np.uint8:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x


def _mean_and_std(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel of uint8 samples, exactly, whatever their number."""
    channels = range(x.shape[1]) if x.ndim == 4 else [slice(None)]
    counts = [np.bincount(x[:, channel].reshape(-1), minlength=256) for channel in channels]
    levels, found = np.arange(256), []
    for count in counts:
        mean = float((count * levels).sum() / count.sum())
        variance = float((count * (levels - mean) ** 2).sum() / count.sum())
        found.append((mean, variance**0.5 or 1.0))  # a channel of one value has no deviation
    return tuple(mean for mean, _ in found), tuple(std for _, std in found)


DATASETS.resolve = from_file
