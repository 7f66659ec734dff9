"""Units that can be removed from a network as wholes: with all weights that write or read them, and nothing else changes."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from raylth.core.masks import Mask
from raylth.core.permutation import PermutationSpec
from raylth.core.permutation.spec import Part
from raylth.core.tensors import tied_names

__all__ = ["Place", "UnitGroup", "first_output", "is_out", "removable_units", "unit_groups", "unit_scores", "units_mask"]

TRIALS = 3  # draws of weights under which a unit that nothing reads is changed


@dataclass(frozen=True, eq=False)
class Place:
    """What the units of a group own of an axis of a tensor: `entries` is (units, entries of each), int64."""

    tensor: str
    axis: int
    entries: Tensor


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units of a symmetry group that can be removed one by one."""

    name: str
    size: int
    writes: tuple[Place, ...]  # rows of layers' weights; those of depthwise convolutions, too
    reads: tuple[Place, ...]  # columns of layers' weights
    others: tuple[Place, ...]  # biases, and what normalisation has for each unit


def unit_groups(network: nn.Module, spec: PermutationSpec, x: Tensor) -> tuple[UnitGroup, ...]:
    """Return the groups of whose units any can be removed, with all that belongs to it, where no weight reads it.

    They are within no others, nor are others within them (attention's heads keep their number and size), all their weights
    are those of linear layers and convolutions, and no operation mixes their units (a layer norm's mean is that of all of
    them). That last is tried: at random weights a unit that nothing reads is changed, and the output must not be. `x` is a
    batch (B, *in_shape) that the network accepts; it is left as it was.
    """
    found = [group for name in spec.groups if (group := _plain(network, spec, name)) is not None]
    if not found or _is_unread(network, spec, x, found):
        return tuple(found)
    return tuple(group for group in found if _is_unread(network, spec, x, [group]))


def removable_units(
    network: nn.Module, spec: PermutationSpec, x: Tensor, mask: Mapping[str, Tensor]
) -> tuple[UnitGroup, ...]:
    """Return those of `unit_groups` whose weights are all in the mask: the rest of them would keep a unit in use."""
    return tuple(
        group
        for group in unit_groups(network, spec, x)
        if all(place.tensor in mask for place in (*group.writes, *group.reads))
    )


def is_out(mask: Mapping[str, Tensor], group: UnitGroup) -> Tensor:
    """Return which units of a group a mask has removed, (units,) bool: no weight writes them."""
    written = torch.zeros(group.size, dtype=torch.bool)
    for place in group.writes:
        rows = mask[place.tensor].movedim(place.axis, 0).flatten(1).any(1).cpu()
        written |= rows[place.entries].any(1)
    return ~written


def units_mask(mask: Mapping[str, Tensor], groups: Iterable[UnitGroup], out: Mapping[str, Tensor]) -> Mask:
    """Return the mask of the same layers in which exactly the weights of some units are pruned.

    `out` maps groups' names to (units,) bool tensors, True for a unit that is removed.
    """
    found = {name: torch.ones_like(alive, dtype=torch.bool) for name, alive in mask.items()}
    for group in groups:
        for place in (*group.writes, *group.reads):
            entries = place.entries[out[group.name]].flatten().to(found[place.tensor].device)
            found[place.tensor].index_fill_(place.axis, entries, False)
    return found


def unit_scores(weights: Mapping[str, Tensor], group: UnitGroup) -> Tensor:
    """Return the sum of the magnitudes of what writes each unit, (units,) float64 (Li et al. 2017, section 3.1)."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for place in group.writes:
        rows = weights[place.tensor].detach().abs().movedim(place.axis, 0).flatten(1).sum(1, dtype=torch.float64).cpu()
        total += rows[place.entries].sum(1)
    return total


def _plain(network: nn.Module, spec: PermutationSpec, name: str) -> UnitGroup | None:
    """Return a group whose units lie by themselves on axes of known layers; None for any other."""
    size = spec.groups[name].size
    if size < 2 or spec.groups[name].within:
        return None
    tied = {*tied_names(network), *tied_names(network).values()}
    layers = {f"{path}.weight" if path else "weight": module for path, module in network.named_modules()}
    writes: list[Place] = []
    reads: list[Place] = []
    others: list[Place] = []
    for tensor, axes in spec.axes.items():
        for axis, held in enumerate(axes):
            parts = [part for part in held.parts if _mentions(part, name)] if held else []
            if not parts:
                continue
            if tensor in tied or any(part.beside or {*part.groups} - {None} != {name} for part in parts):
                return None
            place = Place(tensor, axis, torch.cat([part.led_by([name]).entries().reshape(size, -1) for part in parts], dim=1))
            if len(axes) == 1:
                others.append(place)
            elif not _is_layer(layers.get(tensor)):
                return None
            else:
                (writes if axis == 0 else reads).append(place)
    return UnitGroup(name, size, tuple(writes), tuple(reads), tuple(others)) if writes and reads else None


def _mentions(part: Part, name: str) -> bool:
    return name in part.groups or any(_mentions(other, name) for _, other in part.beside)


def _is_layer(module: nn.Module | None) -> bool:
    """Whether axis 0 of a module's weight is what it writes, and axis 1, if there is any, what it reads."""
    if isinstance(module, _ConvTransposeNd):
        return False
    if isinstance(module, _ConvNd):
        return module.groups == 1 or module.groups == module.in_channels == module.out_channels
    return isinstance(module, nn.Linear)


def _is_unread(network: nn.Module, spec: PermutationSpec, x: Tensor, groups: Sequence[UnitGroup]) -> bool:
    """Whether the output stays the same when a unit of each group changes that no weight reads."""
    tried = copy.deepcopy(network).cpu().eval()  # in its own precision: what is read with weights of 0 adds exactly 0
    state = {name: tensor for name, tensor in tried.state_dict().items() if tensor.is_floating_point()}
    moving = {name for name, axes in spec.axes.items() if any(axes)} | {name for name, _ in tried.named_parameters()}
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(x.shape, generator=draw).to(x.dtype) if x.is_floating_point() else x.cpu()
    for _ in range(TRIALS):
        with torch.no_grad():
            for name in moving & state.keys():
                state[name].copy_(_drawn(state[name], draw))
            for group in groups:
                for place in group.reads:
                    state[place.tensor].index_fill_(place.axis, place.entries[0], 0.0)
            before = first_output(tried(x))
            for group in groups:
                for place in (*group.writes, *group.others):
                    changed = state[place.tensor].index_select(place.axis, place.entries[0])
                    more = torch.rand(changed.shape, generator=draw) + (changed.ndim == 1)
                    state[place.tensor].index_add_(place.axis, place.entries[0], more.to(changed.dtype))
            after = first_output(tried(x))
        if not (bool(torch.isfinite(before).all()) and torch.equal(before, after)):
            return False
    return True


def _drawn(tensor: Tensor, draw: torch.Generator) -> Tensor:
    if tensor.ndim < 2:  # biases, scales and variances
        return torch.rand(tensor.shape, generator=draw) + 0.5
    return torch.randn(tensor.shape, generator=draw) / max(1, tensor[0].numel()) ** 0.5


def first_output(found: Any) -> Tensor:
    """Return the first tensor of what a network returns."""
    if isinstance(found, Tensor):
        return found
    return first_output(next(iter(found.values())) if isinstance(found, Mapping) else found[0])
