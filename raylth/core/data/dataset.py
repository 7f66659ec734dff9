"""What a data set is: two splits of arrays, and the facts that are known without loading it."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raylth.core.data.augment import Augmentation
from raylth.registry import Registry
from raylth.seeding import derive_seed

__all__ = ["DATASETS", "ArrayDataset", "DataError", "DatasetInfo", "Split", "to_device"]


class DataError(ValueError):
    """Missing or corrupt data: one line that names the path and what was expected there."""


@dataclass(frozen=True)
class ArrayDataset:
    """A whole data set in main memory, as plain numpy arrays that Ray's object store can share.

    `train_x`, `test_x`: (N, *in_shape), uint8 for images, float32 for the rest. `train_y`, `test_y`: (N,) int64 labels.
    `mean`, `std`: per channel, in the units of x (uint8 counts for images); a batch is normalised to (x - mean) / std.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def first(self, num_train: int | None, num_test: int | None) -> "ArrayDataset":
        """Keep the first samples of each split; DataError when a split has fewer."""
        for split, wanted, y in (("train", num_train, self.train_y), ("test", num_test, self.test_y)):
            if wanted is not None and wanted > len(y):
                raise DataError(f"data.num_{split}: {wanted} asked for, but the {split} split has {len(y)} samples")
        return dataclasses.replace(
            self,
            train_x=self.train_x[:num_train],
            train_y=self.train_y[:num_train],
            test_x=self.test_x[:num_test],
            test_y=self.test_y[:num_test],
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 of all samples and labels, so that a changed data set cannot pass for the old one."""
        digest = hashlib.sha256()
        for array in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class DatasetInfo:
    """What a sweep can know of a data set before anything is loaded."""

    in_shape: tuple[int, ...]  # one sample's shape, without the batch
    num_classes: int
    num_train: int
    num_test: int
    augment: str  # the usual training augmentation: "none" or "flip_crop"
    from_files: bool  # needs data.root
    load: Callable[..., ArrayDataset]
    dtype: str = "float32"  # of the samples
    check: Callable[..., None] = lambda **_: None  # raises DataError for files that are missing; reads next to nothing


DATASETS: Registry[DatasetInfo] = Registry("data set")


@dataclass(frozen=True)
class Split:
    """One split on a device: `x` (N, *in_shape) uint8 or float32, `y` (N,) int64, and its normalisation."""

    x: Tensor
    y: Tensor
    mean: Tensor | None = None  # (C, 1, 1), in the units of x
    std: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def is_images(self) -> bool:
        """Whether a sample is (C, H, W)."""
        return self.x.ndim == 4

    def epoch(
        self, seeds: Sequence[int], epoch: int, batch_size: int, *, augment: str = "none", first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch of training for K members, from step `first` on: inputs (B * K, *in_shape), labels (B * K,).

        Each member meets the samples in its own order and with its own augmentation ("none" or "flip_crop"), which follow
        from its seed and the epoch; the members' samples of one place in their orders lie side by side.
        """
        generators = [torch.Generator().manual_seed(derive_seed(seed, "order", epoch)) for seed in seeds]
        orders = [torch.randperm(len(self), generator=generator) for generator in generators]
        order = torch.stack(orders, dim=1).to(self.y.device)  # (N, K)
        augmentation = None
        if augment == "flip_crop":
            draws = [Augmentation.draw(len(self), seed, epoch, self.y.device) for seed in seeds]
            augmentation = Augmentation.side_by_side(draws)
        for index in order.split(batch_size)[first:]:
            flat = index.flatten()
            x = self.x[flat]
            yield self.normalise(x if augmentation is None else augmentation(x, flat)), self.y[flat]

    def normalise(self, x: Tensor) -> Tensor:
        """Turn a batch of samples in the units of `x` into the float32 input of a network."""
        if self.mean is None or self.std is None:
            return x.to(torch.float32)
        return x.to(torch.float32, copy=True).sub_(self.mean).div_(self.std)

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return normalised inputs (B, *in_shape) and labels (B,) of the given samples."""
        return self.normalise(self.x[index]), self.y[index]

    def take(self, count: int) -> "Split":
        """Return the first `count` samples as a split of their own that shares their memory."""
        return Split(self.x[:count], self.y[:count], self.mean, self.std)


def to_device(dataset: ArrayDataset, device: str) -> tuple[Split, Split]:
    """Copy both splits to the device, once; returns (train, test)."""
    mean = std = None
    if dataset.mean:
        shape = (-1,) + (1,) * (dataset.train_x.ndim - 2)  # (C, 1, 1)
        mean = torch.tensor(dataset.mean, device=device).reshape(shape)
        std = torch.tensor(dataset.std, device=device).reshape(shape)

    def split(x: np.ndarray, y: np.ndarray) -> Split:
        return Split(torch.tensor(x, device=device), torch.tensor(y, device=device), mean, std)

    return split(dataset.train_x, dataset.train_y), split(dataset.test_x, dataset.test_y)
