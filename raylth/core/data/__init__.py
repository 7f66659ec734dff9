"""Data sets by name, as whole arrays: loaded once, kept on the device, augmented a batch at a time."""

import dataclasses

from raylth.core.data.arrays import ARRAYS, wrapped
from raylth.core.data.augment import Augmentation, flip_and_crop
from raylth.core.data.check import called, checked
from raylth.core.data.cifar import cifar10, cifar100
from raylth.core.data.dataset import ArrayDataset, ArraySplit, DataError, Dataset, MissingData, Split
from raylth.core.data.digits import digits
from raylth.core.data.imagenet import imagenet
from raylth.core.data.info import DATASETS, IMAGENET_MEAN, IMAGENET_STD, DatasetInfo
from raylth.core.data.mnist1d import mnist1d

__all__ = [
    "ARRAYS",
    "DATASETS",
    "ArrayDataset",
    "ArraySplit",
    "Augmentation",
    "DataError",
    "Dataset",
    "DatasetInfo",
    "MissingData",
    "Split",
    "check_dataset",
    "cifar10",
    "cifar100",
    "digits",
    "flip_and_crop",
    "imagenet",
    "load_dataset",
    "mnist1d",
    "wrapped",
]


def load_dataset(
    name: str,
    *,
    root: str | None = None,
    layout: str = "torchvision",
    download: bool = False,
    resolution: int | None = None,
    normalisation: str = "own",
    num_train: int | None = None,
    num_test: int | None = None,
) -> Dataset:
    """Load the named data set: whole into memory as numpy arrays, or the place of its files.

    `root` and `layout` matter to data sets that lie in files only, `resolution` (pixels) to images that stay in them;
    `normalisation` "imagenet" takes ImageNet's constants for colour images in memory, in the place of their own; `num_train`
    and `num_test` keep the first samples of each split in its `stratified_order`. Raises UnknownName, and DataError
    (one line: the path and what was expected there) for missing or corrupt files, and for data that are not what their
    DatasetInfo says (`checked`).
    """
    info = DATASETS[name]
    loaded = called(info.load, info, name, root=root, layout=layout, download=download, resolution=resolution)
    dataset = checked(loaded, info, name, num_train=num_train, num_test=num_test)
    if normalisation == "imagenet":
        if not isinstance(dataset, ArrayDataset):
            raise DataError(f"data.normalisation: {name} is not in memory")
        dataset = dataclasses.replace(dataset, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return dataset.subset(num_train, num_test)


def check_dataset(name: str, *, root: str | None = None, layout: str = "torchvision", download: bool = False) -> None:
    """Raise DataError when files of the named data set are missing; their contents are not looked at."""
    info = DATASETS[name]
    called(info.check, info, name, root=root, layout=layout, download=download)
