"""The data set."""

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from raylth.config.types import Count, Folder, Integer, Settings, known
from raylth.core.data import DATASETS, DatasetInfo

__all__ = ["DataConfig"]


class DataConfig(Settings):
    """The data set; its files' place does not enter a key, their layout does (the images can differ)."""

    name: Annotated[str, known(DATASETS)] = Field(
        validation_alias=AliasChoices("name", "import"),
        description="Data set: a name of this package or of an installed one's entry point, or the import path "
        "package.module:object of a DatasetInfo of one's own.",
    )
    root: Folder | None = Field(None, description="Folder of its files; data sets that come embedded need none.")
    layout: Literal["torchvision", "parquet"] = Field(
        "torchvision", description="How the files lie: torchvision's, or Parquet as the Hugging Face hub stores images."
    )
    download: bool = Field(False, description="Let torchvision download missing files to data.root.")
    resolution: Annotated[Count, Field(le=10_000)] | None = Field(
        None,
        description="Side of training and evaluation crops, in pixels, where images stay in files; null is 224.",
    )
    augment: Literal["auto", "none", "flip_crop", "resized_crop"] = Field(
        "auto",
        description="Training augmentation; auto is flip and crop with padding 4 for CIFAR, random resized crop and flip for "
        "ImageNet, none elsewhere.",
    )
    normalisation: Literal["own", "imagenet"] = Field(
        "own",
        description="Whose mean and deviation by channel normalise images in memory: those of their own training split, or "
        "ImageNet's (the published code on CIFAR-10).",
    )
    num_train: Count | None = Field(
        None,
        description="Keep only so many training samples: classes in proportion, the same samples in every sweep, "
        "and fewer of them lie among more.",
    )
    num_test: Count | None = Field(None, description="Keep only so many test samples, as num_train does.")
    holdout: Integer = Field(
        0,
        ge=0,
        description="Training samples (classes in proportion) that are held back from training, and on which networks are "
        "evaluated instead of the test split, which is not read; 0: none. A search judges by them.",
    )

    @model_validator(mode="after")
    def _complete(self) -> "DataConfig":
        info = DATASETS[self.name]
        if not isinstance(info, DatasetInfo):
            raise ValueError(f"name: {self.name!r} is a {type(info).__name__}, not a raylth.core.data.DatasetInfo")
        if info.from_files and self.root is None:
            raise ValueError(f"root: {self.name} lies in files, so data.root must name their folder")
        for field, available in (("num_train", info.num_train), ("num_test", info.num_test)):
            asked = getattr(self, field)
            if asked is not None and asked > available:
                raise ValueError(f"{field}: {self.name} has {available} such samples, not {asked}")
        if self.holdout:
            if info.is_streamed:
                raise ValueError(f"holdout: the images of {self.name} stay in their files, and no part can be held back")
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
        return self

    @property
    def in_shape(self) -> tuple[int, ...]:
        """One sample's shape."""
        shape = DATASETS[self.name].in_shape
        return shape if self.resolution is None else (shape[0], self.resolution, self.resolution)
