"""Masks in and out: plain tensors of 0 and 1, and the state dicts that `torch.nn.utils.prune` makes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from raylth.core.masks import Mask
from raylth.core.state import like

__all__ = ["complete_mask", "from_plain_masks", "from_torch_prune", "is_torch_prune", "to_torch_prune"]

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
    return like(exchanged, state)


def is_torch_prune(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether these are the tensors of a network pruned by `torch.nn.utils.prune`, rather than masks alone."""
    return any(name.endswith(ORIGINAL) for name in tensors)


def from_plain_masks(tensors: Mapping[str, Tensor]) -> Mask:
    """Read masks alone: one tensor of 0 and 1, of any type, per weight; names may end in `_mask`.

    Raises ValueError for other values, and when there is no tensor.
    """
    if not tensors:
        raise ValueError("there is no mask in it")
    mask = {}
    for name, kept in tensors.items():
        _check_binary(name, kept)
        mask[name.removesuffix(PRUNED)] = kept.bool()
    return mask


def complete_mask(mask: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> Mask:
    """Return a mask with the names and the order of `full`; a weight that `mask` does not name stays alive.

    Raises ValueError for a name that is not prunable here, and for another shape.
    """
    for name, alive in mask.items():
        if name not in full:
            raise ValueError(f"{name!r} is not a prunable weight of the network (they are {', '.join(full)})")
        if alive.shape != full[name].shape:
            raise ValueError(f"{name}: the mask has shape {tuple(alive.shape)}, the weight {tuple(full[name].shape)}")
    return {name: mask[name] if name in mask else torch.ones(kept.shape, dtype=torch.bool) for name, kept in full.items()}


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
            _check_binary(base + PRUNED, kept)
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
    return like(plain, state), mask


def _check(state: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> None:
    for name, alive in mask.items():
        if name not in state:
            raise ValueError(f"the mask names {name!r}, which the network does not have")
        if state[name].shape != alive.shape:
            raise ValueError(f"{name}: the mask has shape {tuple(alive.shape)}, the weight {tuple(state[name].shape)}")


def _check_binary(name: str, kept: Tensor) -> None:
    if not bool(((kept == 0) | (kept == 1)).all()):
        raise ValueError(f"{name} holds values other than 0 and 1")
