"""Masks: which weights may be pruned, how a mask is applied, counted, shuffled and checked.

A mask is a plain dictionary `name -> bool tensor` with one entry per prunable weight; True means alive.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from raylth.common.seeding import derive_seed
from raylth.core.shortcuts import shortcut_layers
from raylth.core.state import like
from raylth.core.tensors import check_tensors, tied_names

__all__ = [
    "Mask",
    "MaskBroken",
    "apply_mask",
    "as_mask",
    "check_mask",
    "full_mask",
    "jaccard",
    "mask_sparsity",
    "model_sparsity",
    "num_alive",
    "num_pruned_units",
    "prunable_names",
    "shuffle_mask",
    "with_signs",
]

Mask = dict[str, Tensor]

PRUNABLE_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of nn.MultiheadAttention
SHORTCUT_NAMES = frozenset({"shortcut", "downsample"})  # ours, torchvision's: of networks that cannot be traced


class MaskBroken(RuntimeError):
    """A weight that the mask prunes is not zero; the text names the tensor and counts the weights."""


def as_mask(found: object, like: Mask, whose: str) -> Mask:
    """Return `found` on the devices of `like` if it is a mask of the same layers and shapes.

    Raises TypeError, one line that begins with `whose` and says what was expected and what was found.
    """
    if not isinstance(found, Mapping) or found.keys() != like.keys():
        shown = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise TypeError(f"{whose}: expected a mask of the layers {', '.join(like)}, found {shown}")
    for layer, alive in like.items():
        tensor = found[layer]
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool or tensor.shape != alive.shape:
            shown = f"{tensor.dtype} of {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{whose}: {layer}: expected a bool tensor of {tuple(alive.shape)}, found {shown}")
    return {layer: found[layer].to(alive.device) for layer, alive in like.items()}


def prunable_names(model: nn.Module, *, prune_shortcuts: bool = False) -> tuple[str, ...]:
    """List the weights that pruning may touch, in the model's order: convolutions and linear layers.

    So are the projections that `nn.MultiheadAttention` holds itself. Residual shortcuts, which are found in the network's
    graph (`shortcut_layers`), are left out unless `prune_shortcuts` (the paper's choice); biases, normalisation and
    embeddings are never prunable, nor is a weight that two layers share. Raises ValueError for tensors that cannot be
    pruned one by one (`check_tensors`).
    """
    check_tensors(model)
    tied = tied_names(model)
    shared = {*tied, *tied.values()}
    names = [f"{path}.{name}" if path else name for path, module in model.named_modules() for name in _prunable(module)]
    names = [name for name in names if name not in shared]
    if prune_shortcuts:
        return tuple(names)
    shortcuts = shortcut_layers(model)
    if shortcuts is None:
        shortcuts = {name for name in names if not SHORTCUT_NAMES.isdisjoint(name.split("."))}
    return tuple(name for name in names if name not in shortcuts)


def _prunable(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, PRUNABLE_LAYERS):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):  # its projection out is a linear layer
        return tuple(name for name in PROJECTIONS if getattr(module, name) is not None)
    return ()


def full_mask(model: nn.Module, *, prune_shortcuts: bool = False) -> Mask:
    """Return the mask that keeps every prunable weight of `model` alive."""
    state = model.state_dict()
    names = prunable_names(model, prune_shortcuts=prune_shortcuts)
    return {name: torch.ones_like(state[name], dtype=torch.bool) for name in names}


def apply_mask(state: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a state dict in which every pruned weight is exactly 0 (also where it was NaN)."""
    masked = like(state, state)
    for name, alive in mask.items():
        masked[name] = torch.where(alive, state[name], torch.zeros_like(state[name]))
    return masked


def check_mask(state: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> None:
    """Raise MaskBroken unless every pruned weight of `state` is exactly 0."""
    for name, alive in mask.items():
        revived = int(torch.count_nonzero(state[name][~alive]))
        if revived:
            raise MaskBroken(f"{name}: {revived} of {int((~alive).sum())} pruned weights are not zero")


def num_alive(mask: Mapping[str, Tensor]) -> int:
    """Count the weights that a mask keeps."""
    return sum(int(alive.sum()) for alive in mask.values())


def mask_sparsity(mask: Mapping[str, Tensor]) -> float:
    """Return the pruned share of the prunable weights, in [0, 1]."""
    total = sum(alive.numel() for alive in mask.values())
    return 1.0 - num_alive(mask) / total if total else 0.0


def model_sparsity(model: nn.Module, mask: Mapping[str, Tensor]) -> float:
    """Return the pruned share of *all* parameters of `model`, in [0, 1].

    With 3x3 shortcuts left dense, a mask of 97 % is about 88.9 % of a ResNet-20.
    """
    pruned = sum(alive.numel() for alive in mask.values()) - num_alive(mask)
    return pruned / sum(parameter.numel() for parameter in model.parameters())


def shuffle_mask(mask: Mapping[str, Tensor], seed: int) -> Mask:
    """Shuffle a mask inside each tensor: the density per layer stays, the places are random (the `random` control)."""
    shuffled = {}
    for name, alive in mask.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "shuffle", name))
        order = torch.randperm(alive.numel(), generator=generator).to(alive.device)
        shuffled[name] = alive.flatten()[order].reshape(alive.shape)
    return shuffled


def with_signs(state: Mapping[str, Tensor], mask: Mapping[str, Tensor], signs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a state dict whose alive weights have the signs of `signs`, a real tensor for each entry of `mask`.

    Magnitudes stay, to the bit. Where `signs` is 0 a weight keeps its own sign, as do pruned weights and all tensors that the
    mask does not name. A weight of 0 stays 0.
    """
    signed = like(state, state)
    for name, alive in mask.items():
        weight, sign = state[name], signs[name].to(state[name])
        signed[name] = torch.where(alive & (sign != 0), torch.copysign(weight, sign), weight)
    return signed


def num_pruned_units(alive: Tensor) -> int:
    """Count the outputs of a layer, (units, ...), that no weight is left for."""
    return int((~alive.flatten(1).any(dim=1)).sum())


def jaccard(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[float, float]:
    """Return (overlap, expected overlap) of two masks, tensor by tensor alike.

    The overlap is the weights alive in both, of those alive in either (1 for two empty masks). Expected is the same of masks
    that keep as many weights of each tensor, at random: the ratio of the two expected counts.
    """
    both = either = expected_both = expected_either = 0.0
    for mask, compared in zip(one, other, strict=True):
        first, second, count = int(mask.sum()), int(compared.sum()), mask.numel()
        shared = int((mask & compared).sum())
        both, either = both + shared, either + first + second - shared
        by_chance = first * second / count
        expected_both, expected_either = expected_both + by_chance, expected_either + first + second - by_chance
    return (both / either if either else 1.0), (expected_both / expected_either if expected_either else 1.0)
