"""Parquet files of images with labels, as the Hugging Face hub names and fills them: which make a split, what they hold."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from raylth.core.data.dataset import DataError

__all__ = ["IMAGE_COLUMNS", "TEST", "TRAIN", "VALIDATION", "encoded", "is_hidden", "split_files", "whole_labels"]

IMAGE_COLUMNS = ("img", "image")
TRAIN, VALIDATION, TEST = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
SPLIT = re.compile(rf"({'|'.join(sorted((*TRAIN, *VALIDATION, *TEST), key=len, reverse=True))})(?![a-z])")
SHARD = re.compile(r"-(\d+)-of-(\d+)")


def is_hidden(path: str) -> bool:
    """Whether a part of a relative path begins with a dot: what systems and editors leave behind is no data."""
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def split_files(names: Iterable[str], wanted: Sequence[Sequence[Sequence[str]]], place: str) -> list[list[str]]:
    """Return the files of each wanted split, sorted, of relative paths of Parquet files.

    Each of `wanted` lists groups of words that may begin a split's files, of which the first that is there counts: a test
    split takes the place of a validation split only where there is none. Hidden files do not count. Raises DataError, which
    names `place` and the files, where files are not one whole split each: two words for it, two folders, shards of
    "-00001-of-00005" that are missing or twice there.
    """
    by_word: dict[str, list[str]] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        hidden = is_hidden(name) or any(part.startswith("_") for part in path.parts)  # as Spark and pyarrow have it
        if path.suffix == ".parquet" and not hidden and (found := SPLIT.match(path.name.lower())):
            by_word.setdefault(found[1], []).append(name)
    splits: list[list[str]] = []
    for groups in wanted:
        words = next((there for group in groups if (there := [word for word in group if word in by_word])), [])
        if len(words) > 1:
            both = " and ".join(by_word[word][0] for word in words[:2])
            raise DataError(f"{place}: {both} are of two splits, or the same one twice: keep only one of them")
        splits.append(by_word[words[0]] if words else [])
    folders: dict[tuple[str, ...], str] = {}
    for name in (name for files in splits for name in files):
        folders.setdefault(_configuration(name), name)
    if len(folders) > 1:
        first, other = list(folders.values())[:2]
        raise DataError(f"{place}: {first} and {other} belong to two data sets: name the folder of one of them")
    for files in splits:
        _check_shards(files, place)
    return splits


def _configuration(name: str) -> tuple[str, ...]:
    """Return the folder that a file is in, without those that name a split."""
    return tuple(part for part in PurePosixPath(name).parts[:-1] if part.lower() not in (*TRAIN, *VALIDATION, *TEST))


def _check_shards(files: list[str], place: str) -> None:
    """Raise DataError where shards are missing, or are of two divisions of the same split."""
    shards = [SHARD.search(PurePosixPath(name).name) for name in files]
    numbers = sorted(int(shard[1]) for shard in shards if shard)
    sizes = {int(shard[2]) for shard in shards if shard}
    whole = [name for name in files if SPLIT.fullmatch(PurePosixPath(name).stem.lower())]
    if (
        len(sizes) > 1
        or (sizes and len(numbers) < len(files))
        or (whole and len(files) > 1)
        or len(set(numbers)) < len(numbers)
    ):
        raise DataError(f"{place}: {files[0]} and {files[-1]} are the same split twice: remove one of them")
    missing = set(range(next(iter(sizes), 0))) - set(numbers)
    if missing:
        raise DataError(f"{place}: of the {sizes.pop()} files such as {files[0]}, number {min(missing):05} is missing")


def whole_labels(column: pa.ChunkedArray, file: str) -> np.ndarray:
    """Return a column of labels (N,) int64; DataError names file and row of one that is no whole number from 0."""

    def refuse(row: int, found: object) -> None:
        raise DataError(f"{file}: row {row}: the label is {found}; whole numbers from 0 are expected")

    kind = column.type
    if column.null_count:
        refuse(next(row for row, value in enumerate(column) if not value.is_valid), "null")
    if not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
        raise DataError(f"{file}: its labels are of type {kind}; whole numbers from 0 are expected")
    labels = column.to_numpy()
    is_right = (labels >= 0) & (labels == np.floor(labels))
    if not is_right.all():
        row = int(is_right.argmin())
        refuse(row, labels[row])
    return labels.astype(np.int64)


def encoded(entry: Any) -> bytes:
    """Return the bytes of an image as the hub stores it, {bytes, path}, or of a plain one; none where it has none."""
    data = entry.get("bytes") if isinstance(entry, dict) else entry
    return data if isinstance(data, bytes) else b""
