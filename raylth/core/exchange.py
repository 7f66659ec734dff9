"""Masks in and out: the state dicts that `torch.nn.utils.prune` makes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from raylth.core.masks import Mask

__all__ = ["from_torch_prune", "to_torch_prune"]

ORIGINAL, PRUNED = "_orig", "_mask"  # torch.nn.utils.prune's names behind a parameter's own


def to_torch_prune(state: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the same network pruned by `torch.nn.utils.prune`.

    Each masked tensor `w` becomes `w_orig` (float, as it is) and `w_mask` (1 alive, 0 pruned). It loads into a network
    whose masked parameters went through `prune.identity` or `prune.custom_from_mask`.
    Raises ValueError for a mask of another network.
    """
    _check(state, mask)
    exchanged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in mask:
            exchanged[name + ORIGINAL] = tensor.clone()
            exchanged[name + PRUNED] = mask[name].to(tensor.dtype)
        else:
            exchanged[name] = tensor.clone()
    return exchanged


def from_torch_prune(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Mask]:
    """Return the plain state dict, pruned weights exactly 0, and the mask of a network pruned by `torch.nn.utils.prune`.

    Raises ValueError when a mask lacks its tensor, holds anything but 0 and 1, or there is no mask at all.
    """
    plain: dict[str, Tensor] = {}
    mask: Mask = {}
    for name, tensor in state.items():
        base = name.removesuffix(ORIGINAL)
        if name.endswith(ORIGINAL) and base + PRUNED in state:
            kept = state[base + PRUNED]
            if not bool(((kept == 0) | (kept == 1)).all()):
                raise ValueError(f"{base + PRUNED} holds values other than 0 and 1")
            mask[base] = kept.bool()
            plain[base] = torch.where(mask[base], tensor, torch.zeros_like(tensor))
        elif name.endswith(PRUNED):
            if name.removesuffix(PRUNED) + ORIGINAL not in state:
                raise ValueError(f"{name} has no {name.removesuffix(PRUNED) + ORIGINAL} beside it")
        else:
            plain[name] = tensor.clone()
    if not mask:
        raise ValueError("no mask: a network pruned by torch.nn.utils.prune has tensors that end in _orig and _mask")
    _check(plain, mask)
    return plain, mask


def _check(state: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> None:
    for name, alive in mask.items():
        if name not in state:
            raise ValueError(f"the mask names {name!r}, which the network does not have")
        if state[name].shape != alive.shape:
            raise ValueError(f"{name}: the mask has shape {tuple(alive.shape)}, the weight {tuple(state[name].shape)}")
