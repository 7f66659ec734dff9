"""Data sets by name, as whole arrays: loaded once, kept on the device, augmented a batch at a time."""

from raylth.core.data.augment import Augmentation, flip_and_crop
from raylth.core.data.cifar import cifar10, cifar100
from raylth.core.data.dataset import DATASETS, ArrayDataset, ArraySplit, DataError, Dataset, DatasetInfo, Split
from raylth.core.data.digits import digits
from raylth.core.data.imagenet import imagenet
from raylth.core.data.mnist1d import mnist1d

__all__ = [
    "DATASETS",
    "ArrayDataset",
    "ArraySplit",
    "Augmentation",
    "DataError",
    "Dataset",
    "DatasetInfo",
    "Split",
    "check_dataset",
    "cifar10",
    "cifar100",
    "digits",
    "flip_and_crop",
    "imagenet",
    "load_dataset",
    "mnist1d",
]


def load_dataset(
    name: str,
    *,
    root: str | None = None,
    layout: str = "torchvision",
    download: bool = False,
    resolution: int | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
) -> Dataset:
    """Load the named data set: whole into memory as numpy arrays, or the place of its files.

    `root` and `layout` matter to data sets that lie in files only, `resolution` (pixels) to images that stay in them;
    `num_train` and `num_test` keep the first samples of each split. Raises UnknownName, and DataError (one line: the path
    and what was expected there) for missing or corrupt files.
    """
    dataset = DATASETS[name].load(root=root, layout=layout, download=download, resolution=resolution)
    return dataset.first(num_train, num_test)


def check_dataset(name: str, *, root: str | None = None, layout: str = "torchvision", download: bool = False) -> None:
    """Raise DataError when files of the named data set are missing; their contents are not looked at."""
    DATASETS[name].check(root=root, layout=layout, download=download)
