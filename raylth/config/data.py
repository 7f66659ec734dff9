"""The data set."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from raylth.common.paths import expanded
from raylth.config.types import Count, Folder, Integer, Settings, is_path, known
from raylth.core.data import DATASETS, DatasetInfo

__all__ = ["DataConfig"]


def _file(name: object) -> object:
    """Expand a .npz file's path, and spell it in one way: from the current folder where it lies below; others stay."""
    if not isinstance(name, str) or not name.endswith(".npz"):
        return name
    path = Path(os.path.abspath(expanded(is_path(name))))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class DataConfig(Settings):
    """The data set; the location of its files does not enter a key, their layout does (the images can differ)."""

    name: Annotated[str, known(DATASETS), BeforeValidator(_file)] = Field(
        validation_alias=AliasChoices("name", "import", "arrays"),
        description="Data set: a name of this package or of an installed package's entry point, the import path "
        "package.module:object of a custom raylth.core.data.DatasetInfo, or a .npz file with the arrays train_x, train_y, "
        "test_x and test_y.",
    )
    root: Folder | None = Field(None, description="Folder of its files; built-in data sets without files need none.")
    layout: Literal["torchvision", "parquet"] = Field(
        "torchvision", description="Layout of the files: torchvision's, or Parquet as the Hugging Face hub stores images."
    )
    download: bool = Field(False, description="Download missing files to data.root with torchvision.")
    resolution: Annotated[Count, Field(le=10_000)] | None = Field(
        None,
        description="Side length in pixels of training and evaluation crops, for images that stay in files; null is 224.",
    )
    loader: Literal["auto", "ffcv", "dali", "torchcodec", "pil"] = Field(
        "auto",
        description="What decodes images that stay in files, with the same crops and flips; auto is the first installed of "
        "ffcv, torchcodec and pil. Pixels differ by rounding and resizing. No key contains it; the column `loader` of "
        "the results records it.",
    )
    augment: Literal["auto", "none", "flip_crop", "resized_crop"] = Field(
        "auto",
        description="Training augmentation; auto is flip and crop with padding 4 for CIFAR, random resized crop and flip for "
        "ImageNet, none elsewhere.",
    )
    normalisation: Literal["own", "imagenet"] = Field(
        "own",
        description="Mean and standard deviation by channel that normalise images in memory: those of their own training"
        " split, or ImageNet's (the published code on CIFAR-10).",
    )
    num_train: Count | None = Field(
        None,
        description="Use only this many training samples: classes in proportion, the same samples in every sweep; a "
        "smaller subset is contained in a larger one.",
    )
    num_test: Count | None = Field(None, description="Use only this many test samples, chosen as for num_train.")
    holdout: Integer = Field(
        0,
        ge=0,
        description="Training samples (classes in proportion) held out from training, on which networks are evaluated "
        "instead of the test split, which is not read; 0: none. A search evaluates its trials on them.",
    )

    @model_validator(mode="after")
    def _complete(self) -> "DataConfig":
        info = DATASETS[self.name]
        if not isinstance(info, DatasetInfo):
            raise ValueError(f"name: {self.name!r} is a {type(info).__name__}, not a raylth.core.data.DatasetInfo")
        if info.from_files and self.root is None:
            raise ValueError(f"root: {self.name} is read from files: set data.root to their folder")
        for field, available in (("num_train", info.num_train), ("num_test", info.num_test)):
            asked = getattr(self, field)
            if asked is not None and asked > available:
                raise ValueError(f"{field}: {self.name} has {available} such samples, not {asked}")
        if self.holdout:
            if info.is_streamed:
                raise ValueError(f"holdout: the images of {self.name} stay in their files, and no part can be held out")
            if self.holdout >= (self.num_train or info.num_train):
                total = self.num_train or info.num_train
                raise ValueError(f"holdout: {self.holdout} of {total} samples leaves none to train on")
        if self.normalisation != "own" and (info.dtype != "uint8" or info.in_shape[0] != 3 or info.is_streamed):
            raise ValueError(f"normalisation: imagenet is for colour images in memory, which those of {self.name} are not")
        if self.augment == "flip_crop" and (len(info.in_shape) != 3 or info.is_streamed):
            raise ValueError(
                f"augment: flip_crop needs images in memory, not samples of shape {info.in_shape} as {self.name} has"
            )
        if self.augment == "resized_crop" and not info.is_streamed:
            raise ValueError(f"augment: resized_crop is for images that stay in files, which those of {self.name} do not")
        if self.resolution is not None and not info.is_streamed:
            raise ValueError(f"resolution: the samples of {self.name} have the shape {info.in_shape}")
        if self.loader != "auto" and not info.is_streamed:
            raise ValueError(f"loader: {self.loader} decodes images that stay in files, which those of {self.name} do not")
        return self

    @property
    def in_shape(self) -> tuple[int, ...]:
        """One sample's shape."""
        shape = DATASETS[self.name].in_shape
        return shape if self.resolution is None else (shape[0], self.resolution, self.resolution)
