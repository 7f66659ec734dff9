"""The one place where a data set is held against its DatasetInfo, before anything is trained: embedded, from files or own."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from raylth.core.data.dataset import ArrayDataset, DataError, Dataset, MissingData
from raylth.core.data.info import DatasetInfo
from raylth.core.data.streamed.dataset import ImageFiles

__all__ = ["as_array", "called", "checked"]

T = TypeVar("T")

SPLITS = ("train", "test")
ROWS = 4096  # samples that are looked at together
NUMBERS = "biuf"  # numpy's kinds of dtypes


def called(function: Callable[..., T], info: DatasetInfo, name: str, **settings: Any) -> T:
    """Call a data set's `load` or `check` with those of the settings that it takes.

    Raises DataError, one line, for whatever it raises, MissingData for a file that is not there.
    """
    what = f"data.name: {name}: its {getattr(function, '__name__', 'load')}()"
    taken = _taken(function, settings, what)
    if function is info.load and info.from_files and "root" not in taken:
        raise DataError(f"{what} takes no root, and its DatasetInfo says that it is read from files: def load(*, root, **_)")
    try:
        return function(**taken)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise MissingData(f"{what} failed: {_line(error)}") from error
    except (Exception, SystemExit) as error:  # what somebody else's code raises can be anything
        raise DataError(f"{what} failed: {type(error).__name__}: {_line(error)}") from error


def _taken(function: Callable[..., Any], settings: dict[str, Any], what: str) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return settings
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        taken = settings
    else:
        taken = {each.name: settings[each.name] for each in parameters if each.name in settings}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_ONLY)
    for each in parameters:
        is_given = each.name in taken and each.kind is not each.POSITIONAL_ONLY
        if each.kind in named and each.default is each.empty and not is_given:
            raise DataError(f"{what} asks for {each.name!r}; available by name: {', '.join(settings)}")
    return taken


def checked(
    dataset: object, info: DatasetInfo, name: str, *, num_train: int | None = None, num_test: int | None = None
) -> Dataset:
    """Return a data set in the form that training needs, if it is what its DatasetInfo says.

    Converted is what loses nothing: lists and tensors to arrays, numbers to float32 (or uint8, if the DatasetInfo says so),
    whole labels of any type to int64, (N, 1) labels to (N,), images with the channels last, or without an axis for their only
    one, to (N, C, H, W). `num_train` and `num_test` are what the sweep asks for: where data lie in files, fewer than the
    whole number may lie there if a number is asked for. Raises DataError, one line: what was found, what would be right.
    """
    if isinstance(dataset, ImageFiles):  # its tables are looked at as its `subset` is made
        return dataset
    if not isinstance(dataset, ArrayDataset):
        return _checked_splits(dataset, info, name)
    found: dict[str, np.ndarray] = {}
    for split, whole, asked in zip(SPLITS, (info.num_train, info.num_test), (num_train, num_test), strict=True):
        what = f"data.name: {name}: {split}"
        x = _samples(getattr(dataset, f"{split}_x"), info, f"{what}_x")
        y = _labels(as_array(getattr(dataset, f"{split}_y"), f"{what}_y"), info.num_classes, f"{what}_y")
        if len(x) != len(y):
            raise DataError(f"{what}_x has {len(x):,} samples and {split}_y {len(y):,} labels: each sample needs one")
        _check_number(len(y), whole, asked, info, name, split)
        found |= {f"{split}_x": x, f"{split}_y": y}
    mean, std = (_channels(getattr(dataset, field), info, f"data.name: {name}: {field}") for field in ("mean", "std"))
    if bool(mean) != bool(std) or any(value <= 0 for value in std):
        raise DataError(f"data.name: {name}: mean {mean} and std {std}: give both or none, and deviations above 0")
    return replace(dataset, **found, mean=mean, std=std)


def as_array(value: object, what: str) -> np.ndarray:
    """Return an array of numbers, of whatever can be read as one; DataError, which begins with `what`, for the rest."""
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        if np.ma.is_masked(value):
            raise DataError(f"{what} is an array with masked entries; a plain one is expected")
        array = np.asarray(value)
        array = np.asarray(array.tolist()) if array.dtype == object and array.ndim else array  # numbers, one by one
    except DataError:
        raise
    except Exception as error:  # somebody else's class can raise anything
        raise DataError(f"{what} is a {type(value).__name__} that is no array: {_line(error)}") from error
    if array.dtype.kind not in NUMBERS:
        shown = f"a {type(value).__name__}" if array.dtype == object else f"of dtype {array.dtype}"
        raise DataError(f"{what} is {shown}; an array of numbers is expected")
    return array


def _samples(value: object, info: DatasetInfo, what: str) -> np.ndarray:
    """Return samples (N, *in_shape) as float32, or uint8 if the data set is announced so."""
    x = _shaped(as_array(value, what), info.in_shape, what)
    if info.dtype == "uint8" and x.dtype != np.uint8:
        low, high = (x.min(), x.max()) if x.size else (0, 0)
        if x.dtype.kind == "f" or low < 0 or high > 255:
            raise DataError(
                f"{what} is of dtype {x.dtype}, {low:g} to {high:g}, and its DatasetInfo says uint8: whole numbers 0 to 255, "
                "or dtype='float32'"
            )
    with np.errstate(over="ignore"):  # it is infinite then
        x = np.ascontiguousarray(x, dtype=info.dtype)
    if x.dtype.kind == "f":
        for start in range(0, len(x), ROWS):
            is_finite = np.isfinite(x[start : start + ROWS]).reshape(len(x[start : start + ROWS]), -1).all(1)
            if not is_finite.all():
                raise DataError(
                    f"{what}: sample {start + int(is_finite.argmin())} is not finite (NaN or infinite, as float32)"
                )
    return x


def _shaped(x: np.ndarray, in_shape: tuple[int, ...], what: str) -> np.ndarray:
    """Return samples with the axes that the network takes, where it is plain how they lie."""
    if x.shape[1:] == in_shape and x.ndim:
        return x
    is_image = len(in_shape) == 3
    if is_image and x.ndim == 4 and x.shape[1:] == (*in_shape[1:], in_shape[0]):  # (N, H, W, C)
        return np.moveaxis(x, -1, 1)
    if is_image and in_shape[0] == 1 and x.shape[1:] == in_shape[1:]:  # (N, H, W)
        return x[:, None]
    expected = ", ".join(("N", *map(str, in_shape)))
    raise DataError(f"{what} has the shape {x.shape}, and by its DatasetInfo it would be ({expected})")


def _labels(y: np.ndarray, num_classes: int, what: str) -> np.ndarray:
    """Return labels (N,) int64 from 0 to num_classes - 1."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        hint = " (one-hot? argmax(1) gives class numbers)" if y.ndim == 2 and y.shape[1] == num_classes else ""
        raise DataError(f"{what} has the shape {y.shape}, and one class number per sample is expected, (N,){hint}")
    if not len(y):
        raise DataError(f"{what} is empty")
    if y.dtype.kind == "f" and not (is_whole := y == np.floor(y)).all():  # NaN is not equal to itself
        row = int(is_whole.argmin())
        raise DataError(f"{what}: label {row} is {y[row]:g}; whole numbers from 0 to {num_classes - 1} are expected")
    low, high = y.min(), y.max()
    if low < 0 or high >= num_classes:
        row = int(np.argmax((y < 0) | (y >= num_classes)))
        hint = "; subtract 1" if low == 1 and high == num_classes else ""
        words = f"{what} has labels from {low:g} to {high:g} (label {row} is {y[row]:g})"
        raise DataError(f"{words}, and its {num_classes} classes are 0 to {num_classes - 1}{hint}")
    return np.ascontiguousarray(y, dtype=np.int64)


def _check_number(found: int, whole: int, asked: int | None, info: DatasetInfo, name: str, split: str) -> None:
    """Raise DataError unless a split has the samples that are announced; in files at least those that are asked for."""
    if found == whole or (info.from_files and asked is not None and asked <= found):
        return
    words = f"{name}: its {split} split has {found:,} samples"
    if not info.from_files:
        raise DataError(f"data.name: {words}, and its DatasetInfo says num_{split}={whole}: make them agree")
    if asked is not None:
        raise DataError(f"data.num_{split}: {asked:,} asked for, but the {split} split of {name} has {found:,} samples")
    raise DataError(
        f"data.num_{split}: {words} in data.root, and the whole set {whole:,}: fetch it again, or set it to {found} if these "
        "are meant"
    )


def _channels(values: Sequence[float], info: DatasetInfo, what: str) -> tuple[float, ...]:
    """Return mean or deviation as numbers, one per channel, or none."""
    numbers = as_array(values if values is not None else (), what).astype(np.float64).reshape(-1).tolist()
    if numbers and (len(numbers) not in (1, info.in_shape[0]) or not all(map(math.isfinite, numbers))):
        raise DataError(f"{what} is {values}; a number for each of the {info.in_shape[0]} channels is expected")
    return tuple(numbers)


def _checked_splits(dataset: object, info: DatasetInfo, name: str) -> Dataset:
    """Check a Dataset of somebody's own by the splits that it gives."""
    what = f"data.name: {name}"
    if inspect.iscoroutine(dataset):
        dataset.close()
    if not isinstance(dataset, Dataset):
        raise DataError(f"{what}: its load() returned {_a(dataset)}, not an ArrayDataset(train_x, train_y, test_x, test_y)")
    try:
        splits = dataset.splits("cpu")
    except Exception as error:
        raise DataError(f"{what}: its splits() failed: {type(error).__name__}: {_line(error)}") from error
    for split, found, whole in zip(SPLITS, splits, (info.num_train, info.num_test), strict=True):
        if not info.is_streamed and tuple(found.in_shape) != info.in_shape:
            raise DataError(
                f"{what}: {split} samples have the shape {found.in_shape}, and its DatasetInfo says {info.in_shape}"
            )
        labels = _labels(as_array(found.y, f"{what}: {split} labels"), info.num_classes, f"{what}: {split} labels")
        _check_number(len(labels), whole, None, info, name, split)
    return dataset


def _a(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
