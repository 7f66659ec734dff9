"""The 8x8 hand-written digits that come with scikit-learn: real images, nothing to download."""

import numpy as np

from raylth.core.data.dataset import ArrayDataset
from raylth.core.data.info import DATASETS, DatasetInfo, Scale

__all__ = ["digits"]

NUM_TRAIN = 1437  # of 1,797; the rest is the test split
SPLIT_SEED = 0


def digits(**_: object) -> ArrayDataset:
    """Load the digits as (N, 1, 8, 8) float32 images, standardised by the training split, in one fixed random split."""
    x, y = _in_order()
    train_x, test_x = x[:NUM_TRAIN], x[NUM_TRAIN:]
    mean, std = train_x.mean(), train_x.std()
    return ArrayDataset(
        train_x=(train_x - mean) / std, train_y=y[:NUM_TRAIN], test_x=(test_x - mean) / std, test_y=y[NUM_TRAIN:]
    )


def _in_order() -> tuple[np.ndarray, np.ndarray]:
    """Return all images (N, 1, 8, 8) float32 in 0..16 and their labels, those of the training split first."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(bunch.target))
    return bunch.images[order].astype(np.float32)[:, None], bunch.target[order].astype(np.int64)


def _scale() -> Scale:
    train_x = _in_order()[0][:NUM_TRAIN]
    return Scale("pixel values 0..16", (float(train_x.mean()),), (float(train_x.std()),))


DATASETS.register("digits")(
    DatasetInfo((1, 8, 8), 10, num_train=NUM_TRAIN, num_test=360, augment="none", from_files=False, load=digits, scale=_scale)
)
