"""MNIST-1D (Greydanus 2020): 40-sample signals of ten classes, embedded in the package."""

from pathlib import Path

import numpy as np

from raylth.core.data.dataset import ArrayDataset
from raylth.core.data.info import DATASETS, DatasetInfo, Scale

__all__ = ["mnist1d"]


def mnist1d(**_: object) -> ArrayDataset:
    """Return the 4,000 training and 1,000 test signals of the generator's own default settings (seed 42).

    They were made once with the package mnist1d (Apache-2.0), in float32, and lie here, so that they have the same bits
    whatever the versions of its libraries; making them takes 2 seconds, reading them none. A test makes them again.
    """
    with np.load(Path(__file__).with_suffix(".npz")) as file:
        return ArrayDataset(
            train_x=file["train_x"],
            train_y=file["train_y"].astype(np.int64),
            test_x=file["test_x"],
            test_y=file["test_y"].astype(np.int64),
        )


DATASETS.register("mnist1d")(
    DatasetInfo(
        (40,), 10, num_train=4000, num_test=1000, augment="none", from_files=False, load=mnist1d,
        scale=lambda: Scale("the values as they are"),
    )
)  # fmt: skip
