"""In which arithmetic a training's products are computed; weights, statistics, loss and update are float32 in each."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = [
    "Precision",
    "cast_like_autocast",
    "fastest_precision",
    "has_bf16",
    "precision",
    "same_precision",
    "set_precision",
]

Precision = Literal["float32", "tf32", "bf16"]


def has_bf16() -> bool:
    """Whether this machine's processor multiplies in bf16; torch computes it elsewhere too, at a tenth of float32's speed."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fastest_precision() -> Precision:
    """Return in which arithmetic this machine's processor trains fastest: bf16 where it multiplies in it."""
    return "bf16" if has_bf16() else "float32"


def set_precision(name: Precision) -> None:
    """Have this process compute float32 products in float32 (IEEE), or in tf32 where that is the name.

    Torch has an older and a newer flag for each library; its compiler reads the one, its kernels the other, and a read raises
    where they contradict each other, so both are set.
    """
    kind = "tf32" if name == "tf32" else "ieee"
    _set_flags({"conv": kind, "rnn": kind, "matmul": kind})


@contextmanager
def precision(name: Precision) -> Iterator[None]:
    """Have float32 products computed in float32, or in tf32 (on a GPU: 10 bits of fraction) where that is the name.

    float32 is that on every device: torch by itself lets cuDNN's convolutions use tf32. It is a decorator, too. At the end
    the flags are what they were.
    """
    with same_precision():
        set_precision(name)
        yield


@contextmanager
def same_precision() -> Iterator[None]:
    """Set the flags back to what they were at the end: torch's exporter changes them."""
    before = {part: flags.fp32_precision for part, flags in _flags().items()}
    try:
        yield
    finally:
        _set_flags(before)


def _flags() -> dict[str, Any]:
    cudnn: Any = torch.backends.cudnn
    return {"conv": cudnn.conv, "rnn": cudnn.rnn, "matmul": torch.backends.cuda.matmul}


def _set_flags(kinds: Mapping[str, str]) -> None:
    torch.backends.cudnn.allow_tf32 = kinds["conv"] == "tf32"  # the older flags first: setting them resets the newer ones
    torch.backends.cuda.matmul.allow_tf32 = kinds["matmul"] == "tf32"
    for part, flags in _flags().items():
        flags.fp32_precision = kinds[part]


def cast_like_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return tensors in the type in which autocast would have a product computed; as they are where it is off."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    kind = torch.get_autocast_dtype(device)
    return [None if tensor is None else tensor.to(kind) for tensor in tensors]
