"""In which order the samples of a split are taken where not all are: every sweep and every stage takes the same ones."""

import numpy as np
import torch

from raylth.common.seeding import derive_seed

__all__ = ["stratified_order"]


def stratified_order(labels: np.ndarray, split: str) -> np.ndarray:
    """Return an order (N,) int64 of all samples of a split, of which any first part is a fair sample of the whole.

    `labels` are (N,) integers. The first n samples have each class in the proportion that it has in the whole, to within
    one sample where classes are equally large; which samples of a class come first is drawn at random, and in which turn the
    classes come. The draws follow from `split` ("train" or "test") alone, so that the first 100 lie among the first 1,000.
    """
    generator = torch.Generator().manual_seed(derive_seed(0, "subset", split))
    shuffled = torch.randperm(len(labels), generator=generator).numpy()
    classes, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = shuffled[np.argsort(inverse[shuffled], kind="stable")]  # class after class, each in random order
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(labels)) - np.repeat(starts, sizes)  # of each sample in its class
    turn = torch.rand(len(classes), generator=generator, dtype=torch.float64).numpy()
    place = (rank + np.repeat(turn, sizes)) / np.repeat(sizes, sizes)
    order: np.ndarray = by_class[np.argsort(place, kind="stable")]
    return order
