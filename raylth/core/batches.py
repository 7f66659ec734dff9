"""Batches as people have them: tensors, arrays, or (inputs, labels) of an ordinary DataLoader."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Batches", "inputs_of", "labelled"]

Batches = Iterable[Any]  # of tensors (B, *in_shape), or of tuples or lists that begin with one
EXPECTED = "expected tensors (B, ...) or (inputs, labels), as a DataLoader yields them"


def inputs_of(batches: Batches, model: nn.Module) -> Iterator[Tensor]:
    """Yield the network inputs of batches, on the model's device, floating-point ones in its precision.

    A batch is a tensor or an array (B, ...), or a tuple or list whose first entry is one. Raises TypeError or ValueError, one
    line, for anything else: a tensor in the place of batches, batches without an axis of samples, dictionaries.
    """
    if isinstance(batches, Tensor | np.ndarray):
        raise TypeError(f"batches: one tensor of shape {tuple(batches.shape)}; give a list, [x], or x.split(100)")
    if isinstance(batches, str | bytes | dict) or not isinstance(batches, Iterable):
        raise TypeError(f"batches: a {type(batches).__name__}; {EXPECTED}")
    like = next((each for each in model.parameters() if each.is_floating_point()), None)
    for batch in batches:
        x = _inputs(batch)
        yield x if like is None else x.to(like.device, like.dtype if x.is_floating_point() else None)


def labelled(batches: Batches, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return (inputs, labels) of all batches, on the model's device; TypeError or ValueError, one line, as `inputs_of`."""
    found = list(batches) if isinstance(batches, Iterable) and not isinstance(batches, Tensor | dict | str) else batches
    inputs = list(inputs_of(found, model))
    for batch in found:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise TypeError("batches: a batch without labels; expected (inputs, labels), as a DataLoader yields them")
    labels = [torch.as_tensor(batch[1]) for batch in found]
    for x, y in zip(inputs, labels, strict=True):
        if y.shape != x.shape[:1] or y.is_floating_point():
            raise ValueError(
                f"batches: labels of shape {tuple(y.shape)}, {y.dtype}, for {len(x)} inputs; ({len(x)},) numbers are expected"
            )
    return [(x, y.to(x.device, torch.int64)) for x, y in zip(inputs, labels, strict=True)]


def _inputs(batch: Any) -> Tensor:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(first, np.ndarray) and first.dtype.kind in "biuf":
        first = torch.from_numpy(first)
    if not isinstance(first, Tensor):
        shown = (
            f"with the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else f"beginning with a {_kind(first)}"
        )
        raise TypeError(f"batches: a {_kind(batch)} {shown}; {EXPECTED}")
    if first.ndim < 2:
        raise ValueError(
            f"batches: a batch of shape {tuple(first.shape)}; {EXPECTED} ((x, y) alone is a batch: give [(x, y)])"
        )
    return first


def _kind(value: Any) -> str:
    return type(value).__name__
