"""The table of what can decode a .beton file's images: which are installed, and how each is made.

Order, windows and flips are raylth's, so every loader gives the same crops; pixels differ by how each rounds and resizes.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raylth.core.data.dataset import DataError
from raylth.core.data.streamed.beton import Beton

__all__ = ["AUTO", "LOADERS", "Loader", "Reader", "chosen_loader", "is_installed", "make_reader"]

AUTO = "auto"


class Reader(Protocol):
    """What decodes a file's images."""

    def batches(self, order: np.ndarray, batch_size: int, key: int | None) -> Iterator[Tensor]:
        """Yield (B, H, W, 3) uint8: cropped and flipped by `key`, or centres; a batch may be overwritten after the next."""


@dataclass(frozen=True)
class Loader:
    """A loader: the package it needs, the command that installs that, and how to make its reader."""

    package: str
    install: str
    make: Callable[[Beton, int, float, torch.device], Reader]
    automatic: bool = True  # whether `auto` may take it


def _ffcv(beton: Beton, resolution: int, center_share: float, device: torch.device) -> Reader:
    threads = torch.get_num_threads()
    from raylth.core.data.streamed.ffcv_reader import FfcvImages  # FFCV sets it to 1

    torch.set_num_threads(threads)
    return FfcvImages(beton, resolution, center_share, device)


def _dali(beton: Beton, resolution: int, center_share: float, device: torch.device) -> Reader:
    from raylth.core.data.streamed.dali_reader import DaliImages

    return DaliImages(beton, resolution, center_share, device)


def _torchcodec(beton: Beton, resolution: int, center_share: float, device: torch.device) -> Reader:
    from raylth.core.data.streamed.torchcodec_reader import TorchCodecImages

    return TorchCodecImages(beton, resolution, center_share, device)


def _pil(beton: Beton, resolution: int, center_share: float, device: torch.device) -> Reader:
    from raylth.core.data.streamed.pil_reader import PilImages

    return PilImages(beton, resolution, center_share, device)


LOADERS = {  # in the order in which `auto` looks for them
    "ffcv": Loader("ffcv", "make ffcv", _ffcv),
    "dali": Loader("nvidia.dali", "pip install 'raylth[dali]'", _dali, automatic=False),
    "torchcodec": Loader("torchcodec", "pip install 'raylth[torchcodec]'", _torchcodec),
    "pil": Loader("PIL", "pip install pillow", _pil),
}


@cache
def is_installed(name: str) -> bool:
    """Whether the package of a loader is there; it is not imported."""
    try:
        return importlib.util.find_spec(LOADERS[name].package) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def chosen_loader(name: str) -> str:
    """Return the loader of this machine for the setting `data.loader`: the first installed one for "auto".

    Raises DataError, with what to install, when the named one is not there.
    """
    if name == AUTO:
        return next(each for each, loader in LOADERS.items() if loader.automatic and is_installed(each))
    if not is_installed(name):
        others = ", ".join(each for each in LOADERS if is_installed(each))
        raise DataError(
            f"data.loader: {name} is not installed on this machine ({LOADERS[name].install}; docs/guides/imagenet.md); "
            f"installed here: {others}"
        )
    return name


def make_reader(name: str, beton: Beton, resolution: int, center_share: float, device: torch.device) -> Reader:
    """Make the reader of a loader that `chosen_loader` gave; DataError when its package is there but cannot be loaded."""
    try:
        return LOADERS[name].make(beton, resolution, center_share, device)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"data.loader: {name} is installed on this machine but cannot be loaded: {reason}") from error
