"""MNIST-1D (Greydanus 2020): 40-sample signals of ten classes, generated locally from a fixed seed."""

import random

import numpy as np

from raylth.core.data.dataset import DATASETS, ArrayDataset, DatasetInfo

__all__ = ["mnist1d"]


def mnist1d(**_: object) -> ArrayDataset:
    """Generate the 4,000 training and 1,000 test signals with the package's own default settings (seed 42)."""
    from mnist1d.data import get_dataset_args, make_dataset  # matplotlib comes with it: only when it is asked for

    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        data = make_dataset(get_dataset_args())  # seeds and uses the two global generators
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
    return ArrayDataset(
        train_x=data["x"].astype(np.float32),
        train_y=data["y"].astype(np.int64),
        test_x=data["x_test"].astype(np.float32),
        test_y=data["y_test"].astype(np.int64),
    )


DATASETS.register("mnist1d")(
    DatasetInfo((40,), 10, num_train=4000, num_test=1000, augment="none", from_files=False, load=mnist1d)
)
