"""A smaller dense network that computes what a pruned one computes: units that no weight reads or writes are cut out."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from raylth.core.graph import place_of
from raylth.core.masks import apply_mask
from raylth.core.permutation import PermutationSpec, derive_spec
from raylth.core.pruning.units import Place, UnitGroup, first_output, unit_groups

__all__ = ["compact"]

# On the difference of the two networks' outputs, relative to the largest: in float64, and where a network casts to less.
TOLERANCE = {torch.float64: 1e-9}
OTHERWISE = 1e-5


def compact(network: nn.Module, mask: Mapping[str, Tensor], x: Tensor, *, spec: PermutationSpec | None = None) -> nn.Module:
    """Return a copy of `network` under `mask` without the units that are not used, dense and with smaller layers.

    A unit is removed where no weight reads it. One that no weight writes still has a constant value, that of its bias and
    batch norm in evaluation: where every layer that reads it can hold that in its bias (also a new one), it is removed, too;
    a convolution that pads cannot, unless the constant is 0. Both are repeated until nothing changes, and one unit of a layer
    stays. Which tensors a unit has follows from the symmetry `spec`, which is derived where it is not given: a unit of a
    residual stream is removed only where it is dead in the whole stream, and heads of attention and streams with layer norms
    stay whole (`unit_groups`). The result computes the same function in evaluation, which is tried in float64 to 1e-9 (in
    float32 to 1e-5 where the network casts to that), and in training where no constant was moved. `x` is a batch
    (B, *in_shape) that the network accepts.

    Raises ValueError, one line, for a smaller network that does not run (a forward pass with sizes of its own) or computes
    something else.
    """
    masked = copy.deepcopy(network)
    masked.load_state_dict(apply_mask(network.state_dict(), mask))
    masked = _widened(masked, x)
    spec = derive_spec(network, x) if spec is None else spec
    groups = unit_groups(network, spec, x)
    small = copy.deepcopy(masked)
    gone = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in groups}
    while _drop_unread(small, groups, gone) or _fold_constants(small, groups, gone, x):
        pass
    _cut(small, groups, gone)
    _check(masked, small, x)
    _cast(small, network)
    return small.train(network.training)


def _drop_unread(network: nn.Module, groups: Sequence[UnitGroup], gone: dict[str, Tensor]) -> bool:
    """Note the units that no weight reads, and set to zero what writes them; returns whether that was anything."""
    state, found = network.state_dict(), False
    for group in groups:
        unread = ~_is_any(state, group.reads, group.size)
        found |= bool((unread & _is_any(state, group.writes, group.size)).any())
        for place in group.writes:
            state[place.tensor].index_fill_(place.axis, place.entries[unread].flatten().to(state[place.tensor].device), 0.0)
        if bool(unread.all()):
            unread[(~gone[group.name]).nonzero()[0]] = False  # a layer has at least one unit
        found |= bool((unread & ~gone[group.name]).any())
        gone[group.name] |= unread
    return found


def _fold_constants(network: nn.Module, groups: Sequence[UnitGroup], gone: Mapping[str, Tensor], x: Tensor) -> bool:
    """Move the constants of units that no weight writes into the biases of what reads them; returns whether any was."""
    state = network.state_dict()
    waiting = {
        group.name: ~_is_any(state, group.writes, group.size) & _is_any(state, group.reads, group.size) & ~gone[group.name]
        for group in groups
    }
    if not any(bool(units.any()) for units in waiting.values()):
        return False
    layers = {f"{path}.weight" if path else "weight": module for path, module in network.named_modules()}
    inputs = _inputs(network, {place.tensor: layers[place.tensor] for group in groups for place in group.reads}, x)
    found = False
    for group in groups:
        for unit in waiting[group.name].nonzero().flatten().tolist():
            values = [_constant(layers[place.tensor], inputs.get(place.tensor), place.entries[unit]) for place in group.reads]
            if any(value is None for value in values):
                continue
            found = True
            for place, value in zip(group.reads, values, strict=True):
                assert value is not None
                _fold(layers[place.tensor], place.entries[unit], value)
    return found


@torch.no_grad()
def _fold(layer: nn.Module, entries: Tensor, value: Tensor) -> None:
    """Add to a layer's bias what inputs of a constant value contribute, and read them no more."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    columns = weight.index_select(1, entries.to(weight.device))  # (out, entries, *kernel)
    more = columns.reshape(*columns.shape[:2], -1).sum(2) @ value
    if bool(more.any()):
        old = layer.bias if isinstance(layer.bias, Tensor) else torch.zeros_like(more)
        layer.bias = nn.Parameter(old + more, requires_grad=weight.requires_grad)
    weight.index_fill_(1, entries.to(weight.device), 0.0)


def _is_any(state: Mapping[str, Tensor], places: Sequence[Place], size: int) -> Tensor:
    """Return which units have any weight that is not zero at some places."""
    found = torch.zeros(size, dtype=torch.bool)
    for place in places:
        lines = (state[place.tensor] != 0).movedim(place.axis, 0).flatten(1).any(1).cpu()
        found |= lines[place.entries].any(1)
    return found


@torch.no_grad()
def _inputs(network: nn.Module, layers: Mapping[str, nn.Module], x: Tensor) -> dict[str, Tensor]:
    """Return what layers are given for a batch, in float64 with their inputs last; those that are called once."""
    tried = copy.deepcopy(network).eval()
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    for path, module in tried.named_modules():
        name = f"{path}.weight" if path else "weight"
        if name in layers:
            axis = -1 if isinstance(module, nn.Linear) else 1
            module.register_forward_pre_hook(
                lambda module, args, name=name, axis=axis: seen[name].append(args[0].movedim(axis, -1).flatten(0, -2).clone())
            )
    tried(_sample(x, tried))
    return {name: found[0] for name, found in seen.items() if len(found) == 1}


def _constant(layer: nn.Module, rows: Tensor | None, entries: Tensor) -> Tensor | None:
    """Return what a unit's entries always are, (entries,) float64; None where they vary, or no bias can hold that."""
    if rows is None:
        return None
    values = rows[:, entries.to(rows.device)]
    if not bool((values == values[:1]).all()):
        return None
    is_padded = isinstance(layer, _ConvNd) and layer.padding != "valid" and (layer.padding == "same" or any(layer.padding))
    return None if is_padded and bool(values[0].any()) else values[0]


@torch.no_grad()
def _cut(network: nn.Module, groups: Sequence[UnitGroup], gone: Mapping[str, Tensor]) -> None:
    """Take the units that are gone out of all tensors, and set what modules say of their sizes."""
    state = network.state_dict(keep_vars=True)
    kept: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        for place in (*group.writes, *group.reads, *group.others):
            axes = kept.setdefault(place.tensor, {})
            keep = axes.setdefault(place.axis, torch.ones(state[place.tensor].shape[place.axis], dtype=torch.bool))
            keep[place.entries[gone[group.name]].flatten()] = False
    for name, axes in kept.items():
        path, _, attribute = name.rpartition(".")
        module, tensor = network.get_submodule(path), state[name]
        small = tensor.detach()
        for axis, keep in axes.items():
            small = small.index_select(axis, keep.nonzero().flatten().to(small.device))
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(attribute, nn.Parameter(small, requires_grad=tensor.requires_grad))
        else:
            module.register_buffer(attribute, small)
    for module in network.modules():
        _resize(module)


def _resize(module: nn.Module) -> None:
    """Set a module's sizes by its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvNd):
        if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
            module.groups = len(module.weight)
        if not module.transposed:
            module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, _NormBase):
        held = next((each for each in (module.weight, module.running_mean) if isinstance(each, Tensor)), None)
        module.num_features = module.num_features if held is None else len(held)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


@torch.no_grad()
def _check(masked: nn.Module, small: nn.Module, x: Tensor) -> None:
    """Raise ValueError unless two networks compute the same function in evaluation."""
    inputs = _sample(x, masked)
    expected = first_output(copy.deepcopy(masked).eval()(inputs))
    try:
        found = first_output(copy.deepcopy(small).eval()(inputs))
    except Exception as error:  # of the network's own code, which may do anything
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"the smaller network does not run ({why}{place_of(error)}): its forward pass has sizes of its own"
        ) from error
    largest = float(expected.abs().max())
    change = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    if not change <= TOLERANCE.get(expected.dtype, OTHERWISE) * max(largest, 1e-30):
        raise ValueError(
            f"the smaller network computes something else: outputs differ by {change:.2g}, the largest is {largest:.2g}"
        )


@torch.no_grad()
def _widened(network: nn.Module, x: Tensor) -> nn.Module:
    """Return a network in float64, or as it is where its forward pass casts to something else."""
    wide = copy.deepcopy(network).double()
    try:
        copy.deepcopy(wide).eval()(_sample(x, wide))
    except Exception:  # of the network's own code, which may do anything
        return network
    return wide


def _cast(small: nn.Module, network: nn.Module) -> None:
    """Give a network's tensors the precision that those of the same name have, a new bias that of its weight."""
    types = {name: tensor.dtype for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    for name, tensor in (*small.named_parameters(), *small.named_buffers()):
        path = name.rpartition(".")[0]
        tensor.data = tensor.data.to(types[name] if name in types else types[f"{path}.weight" if path else "weight"])


def _sample(x: Tensor, network: nn.Module) -> Tensor:
    """Return random inputs like `x`, in the network's precision and on its device."""
    weight = next(network.parameters(), x)
    if not x.is_floating_point():
        return x.to(weight.device)
    draw = torch.Generator().manual_seed(0)
    return torch.randn(x.shape, generator=draw, dtype=torch.float64).to(weight)
