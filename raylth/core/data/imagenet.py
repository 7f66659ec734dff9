"""ImageNet (ILSVRC 2012) from the two .beton files that `python -m raylth.data imagenet` writes."""

import functools

from raylth.core.data.dataset import DataError
from raylth.core.data.info import DATASETS, IMAGENET_MEAN, IMAGENET_STD, DatasetInfo, Scale
from raylth.core.data.streamed.beton import Beton
from raylth.core.data.streamed.dataset import CENTER_SHARE, ImageFiles
from raylth.core.data.streamed.files import below

__all__ = ["FILES", "imagenet"]

FILES = {"train": "train.beton", "test": "val.beton"}
RESOLUTION = 224
WHOLE = (1_281_167, 50_000)
CLASSES = 1000
UNITS = f"pixel values 0..255 of an image's central square, {CENTER_SHARE:g} of its shorter side, resized"


def imagenet(*, root: str | None, resolution: int | None = None, **_: object) -> ImageFiles:
    """Return the place of the images, (3, resolution, resolution) uint8 of 1,000 classes; none is read."""
    check(root=root)
    train, test = (below(root or "", name) for name in FILES.values())
    return ImageFiles(train, test, resolution or RESOLUTION, CLASSES, IMAGENET_MEAN, IMAGENET_STD, WHOLE)


def check(*, root: str | None, **_: object) -> None:
    """Raise DataError unless both files are there and whole; their tables are read, no image is."""
    if root is None:
        raise DataError("data.root: imagenet is read from files: set data.root to their folder")
    for name in FILES.values():
        try:
            Beton(below(root, name))
        except DataError as error:
            raise type(error)(f"data.root: {error}") from error


DATASETS.register("imagenet")(
    DatasetInfo(
        (3, RESOLUTION, RESOLUTION),
        CLASSES,
        num_train=WHOLE[0],
        num_test=WHOLE[1],
        augment="resized_crop",
        from_files=True,
        load=imagenet,
        dtype="uint8",
        check=check,
        is_streamed=True,
        scale=functools.partial(Scale, UNITS, IMAGENET_MEAN, IMAGENET_STD),
    )
)
