"""What is known of a data set without loading it, and the registry of those that a sweep can name."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from raylth.common.registry import Registry
from raylth.core.data.dataset import Dataset

__all__ = ["DATASETS", "IMAGENET_MEAN", "IMAGENET_STD", "DatasetInfo", "Scale"]

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of its training images, 0..255
AUGMENTS = ("none", "flip_crop", "resized_crop")
DTYPES = ("float32", "uint8")
CHANNELS = (1, 3)  # of images that are shaped (H, W, C)


class Scale(NamedTuple):
    """How samples become the input of a network: (x - mean) / std per channel, where there are such; x is in `units`."""

    units: str = "the samples as their data set gives them to a network"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class DatasetInfo:
    """What a sweep knows of a data set before anything is loaded; ValueError for inconsistent values.

    `load` is called with those of root, layout, download and resolution that are among its parameters, and returns a Dataset;
    `check` with the first three.
    """

    in_shape: tuple[int, ...]  # one sample's shape, without the batch; images are (C, H, W)
    num_classes: int
    num_train: int
    num_test: int
    augment: str  # the usual training augmentation: "none", "flip_crop" or "resized_crop"
    from_files: bool  # needs data.root
    load: Callable[..., Dataset]
    dtype: str = "float32"  # of the samples, or uint8
    check: Callable[..., None] = lambda **_: None  # raises DataError for files that are missing; reads next to nothing
    is_streamed: bool = False  # images stay in their files, and come at any resolution
    scale: Callable[[], Scale] = Scale  # for those who use a network elsewhere
    files: Callable[..., list[Path]] | None = None  # all that `load` reads, where that is known: (root, layout) -> files
    content: str | None = None  # a hash of the samples, by which keys name a data set that has no name but its file's

    def __post_init__(self) -> None:
        for field, least in (("num_classes", 2), ("num_train", 1), ("num_test", 1)):
            if _whole(getattr(self, field), field) < least:
                raise ValueError(f"DatasetInfo: {field} is {getattr(self, field)}, and must be at least {least}")
        if not isinstance(self.in_shape, tuple | list) or not self.in_shape:
            raise ValueError(
                f"DatasetInfo: in_shape is {self.in_shape!r}, and must be one sample's shape, such as (3, 32, 32)"
            )
        shape = tuple(_whole(side, "in_shape") for side in self.in_shape)
        object.__setattr__(self, "in_shape", shape)
        if min(shape) < 1:
            raise ValueError(f"DatasetInfo: in_shape is {shape}, and its sides must be at least 1")
        if len(shape) == 3 and shape[2] in CHANNELS and shape[0] == shape[1] > 4:
            raise ValueError(
                f"DatasetInfo: in_shape is {shape}, and images are (channels, height, width): {shape[2:] + shape[:2]}"
            )
        for field, known in (("augment", AUGMENTS), ("dtype", DTYPES)):
            if getattr(self, field) not in known:
                raise ValueError(f"DatasetInfo: {field} is {getattr(self, field)!r}, and must be one of {', '.join(known)}")
        for field in ("load", "check", "scale"):
            if not callable(getattr(self, field)):
                raise ValueError(f"DatasetInfo: {field} is {getattr(self, field)!r}, and must be a function")

    def layout(self, asked: str) -> str:
        """Return how the samples lie, where `asked` is what a sweep file says of files."""
        return "beton" if self.is_streamed else asked if self.from_files else "embedded"


def _whole(value: object, field: str) -> int:
    """Return a whole number, also one of numpy's; ValueError for anything else."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"DatasetInfo: {field} has {value!r}, and must be of whole numbers") from None


DATASETS: Registry[DatasetInfo] = Registry("data set", "raylth.datasets")
