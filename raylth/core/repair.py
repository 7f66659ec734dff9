"""REPAIR: gives a network between two others the statistics that its end points would have (Jordan et al. 2023).

An interpolated network's units vary too little. Each layer's output is rescaled by a positive factor, channel by channel, to
the mean and deviation that lie between the end points'; with batch norm that is its affine part and its statistics, without
it the layer's own weight and bias, so nothing is left over that was not in the network before.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from raylth.core.batches import Batches, inputs_of
from raylth.core.batchnorm import Moments, set_statistics
from raylth.core.fixed_entries import fixed_of
from raylth.core.modes import in_mode
from raylth.core.precision import precision

__all__ = ["Statistics", "mean_statistics", "repair", "repair_sites", "repair_to", "site_statistics"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.MultiheadAttention)
SMALLEST = 1e-12  # a deviation below this is a dead unit's


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of a site's channels, (C,) float64 each."""

    mean: Tensor
    deviation: Tensor


def repair_sites(model: nn.Module, x: Tensor) -> list[str]:
    """Return the modules whose outputs are corrected, in the order in which a forward pass of inputs `x` calls them: every
    affine batch norm, and every layer with a bias that no batch norm follows, but for the one that gives the logits.

    A module that runs more than once in a forward pass, or has a tensor that something else uses too (tied weights), is none:
    one correction of its weights cannot fit all uses. Raises ValueError for a site with fixed entries, which are no weights.
    """
    return _Pass(model, x).sites()


class _Pass(TorchFunctionMode):
    """One forward pass in evaluation: what was called, by whom outputs were read, and how often each tensor."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.calls: list[tuple[str, nn.Module]] = []
        self.outputs: dict[int, tuple[int, Tensor]] = {}  # tensor -> the call that it is the output of, itself
        self.norms: dict[int, list[nn.Module]] = {}  # call -> batch norms that read its output
        self.uses: Counter[int] = Counter()
        names = {module: name for name, module in model.named_modules()}
        with ExitStack() as hooks, in_mode(model, training=False), torch.no_grad():
            for module, name in names.items():
                if isinstance(module, (_BatchNorm, *LAYERS)):
                    hooks.callback(module.register_forward_pre_hook(self._before).remove)
                    hooks.callback(module.register_forward_hook(partial(self._after, name)).remove)
                elif isinstance(module, nn.Identity):
                    hooks.callback(module.register_forward_hook(self._passed_on).remove)
            with self:
                self.logits = model(x)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        if getattr(func, "__name__", "") != "__get__":  # a shape, a type
            self.uses.update(id(value) for value in given if isinstance(value, Tensor))
        result = func(*args, **(kwargs or {}))
        if any(result is value for value in given):  # in place, or dropout: who reads it later reads something else
            self.outputs.pop(id(result), None)
        return result

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, _BatchNorm) and args and id(args[0]) in self.outputs:
            self.norms.setdefault(self.outputs[id(args[0])][0], []).append(module)

    def _after(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        result = _result(out)
        self.outputs[id(result)] = len(self.calls), result
        self.calls.append((name, module))

    def _passed_on(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        self.outputs.pop(id(out), None)

    def shared(self) -> set[nn.Module]:
        """Return the modules of which something is used more than once: they themselves, or a tensor."""
        times = Counter(module for _, module in self.calls)
        return {module for module in times if times[module] > 1 or any(self.uses[tensor] > 1 for tensor in _tensors(module))}

    def sites(self) -> list[str]:
        """Return what can be corrected."""
        shared = self.shared()
        last, _ = self.outputs.get(id(self.logits), (None, None))
        found = []
        for place, (name, module) in enumerate(self.calls):
            if module in shared:
                continue
            if isinstance(module, _BatchNorm):
                is_site = module.affine
            else:
                is_corrected = any(norm not in shared for norm in self.norms.get(place, ()))
                is_site = getattr(_writer(module), "bias", None) is not None and place != last and not is_corrected
            if is_site and fixed_of(module) is not None:
                raise ValueError(
                    f"{name} has fixed entries, which REPAIR cannot rescale: leave repair out of all corrections"
                )
            found += [name] if is_site else []
        return found


def _tensors(module: nn.Module) -> set[int]:
    """Return which tensors a module has, each by its identity."""
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


@precision("float32")
@torch.no_grad()
def site_statistics(model: nn.Module, batches: Batches) -> dict[str, Statistics]:
    """Return mean and deviation of every site's output over all samples and positions, the network in eval mode."""
    inputs, first = _with_first(batches, model)
    if first is None:
        raise ValueError("no samples: statistics need at least one batch")
    moments = {name: Moments() for name in repair_sites(model, first)}
    with ExitStack() as hooks, in_mode(model, training=False):
        for name, into in moments.items():
            module = model.get_submodule(name)
            axis = _axis(module)
            handle = module.register_forward_hook(lambda _, __, out, into=into, axis=axis: into.add(_result(out), axis))
            hooks.callback(handle.remove)
        for x in inputs:
            model(x)
    results = {name: moment.result() for name, moment in moments.items()}
    return {name: Statistics(mean, variance.sqrt()) for name, (mean, variance) in results.items()}


def repair(
    model: nn.Module,
    statistics_a: dict[str, Statistics],
    statistics_b: dict[str, Statistics],
    alpha: float,
    batches: Batches,
) -> None:
    """Set every site's mean and standard deviation to (1 - alpha) A's + alpha B's, in place and in one pass.

    `model` is the network at alpha between A and B; the statistics come from `site_statistics` of the end points. All else is
    as in `repair_to`. Jordan et al. (2023), equations 4 and 5.
    Raises ValueError for no data, or statistics of another architecture.
    """
    repair_to(model, mean_statistics([statistics_a, statistics_b], [1 - alpha, alpha]), batches)


def mean_statistics(
    statistics: Sequence[dict[str, Statistics]], shares: Sequence[float] | None = None
) -> dict[str, Statistics]:
    """Return the weighted mean of several networks' means and of their deviations, site by site; unsaid, all count the same.

    Raises ValueError for statistics of different architectures.
    """
    first = statistics[0]
    if any(set(each) != set(first) for each in statistics):
        raise ValueError("the statistics belong to networks of another architecture")
    weights = shares or [1 / len(statistics)] * len(statistics)

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)

    return {
        name: Statistics(mean([each[name].mean for each in statistics]), mean([each[name].deviation for each in statistics]))
        for name in first
    }


@precision("float32")
@torch.no_grad()
def repair_to(model: nn.Module, targets: dict[str, Statistics], batches: Batches) -> None:
    """Set every site's mean and standard deviation to given ones, in place and in one pass.

    `batches` yields network inputs (B, *in_shape), or (inputs, labels) as a DataLoader does. While a layer is measured, those
    before it are corrected already, by the statistics of the batch, so that of one batch a network with its own statistics as
    targets is itself again. A batch norm's weight keeps its sign. A unit that never varies is only shifted, so a weight of 0
    stays 0. Batch norms that are not a site have their statistics re-estimated, except those with a module or tensor that is
    used twice, which are unchanged, statistics included.
    Raises ValueError for no data, or statistics of another architecture.
    """
    inputs, first = _with_first(batches, model)
    if first is None:
        raise ValueError("no samples: statistics need at least one batch")
    seen = _Pass(model, first)
    sites, shared = seen.sites(), seen.shared()
    if set(sites) != set(targets):
        raise ValueError("the statistics belong to networks of another architecture")
    norms = {n: module for n, module in model.named_modules() if isinstance(module, _BatchNorm) and module not in shared}
    modules = {name: model.get_submodule(name) for name in sites} | norms
    moments = {name: Moments() for name in modules}
    slopes = {name: _slope(module) for name, module in norms.items() if name in targets}
    with ExitStack() as hooks, in_mode(model, training=False):  # the very operations that the statistics are from
        for norm in norms.values():
            norm.training = True
        for name, module in modules.items():
            if isinstance(module, _BatchNorm):
                hook = partial(_rescale, moments[name], targets.get(name), slopes.get(name))
                handle = module.register_forward_pre_hook(hook)
            else:
                handle = module.register_forward_hook(partial(_correct, moments[name], targets[name]))
            hooks.callback(handle.remove)
        for x in inputs:
            model(x)
    set_statistics({name: module for name, module in norms.items() if moments[name].count}, moments)
    for name in sites:
        module = modules[name]
        if isinstance(module, _BatchNorm):
            _set_affine(module, moments[name], targets[name], slopes[name], correction=1)
        else:
            _fuse(module, moments[name], targets[name])


def _with_first(batches: Batches, model: nn.Module) -> tuple[Iterator[Tensor], Tensor | None]:
    """Return the inputs of all batches, and up to two samples of the first; None where there is no batch."""
    inputs = iter(inputs_of(batches, model))
    first = next(inputs, None)
    return (iter(()), None) if first is None else (chain([first], inputs), first[:2])


def _slope(module: _BatchNorm) -> Tensor:
    """Return by how much a batch norm's output changes with its input in evaluation, (C,) float64."""
    variance = torch.zeros_like(module.weight) if module.running_var is None else module.running_var
    return module.weight.double() / (variance.double() + module.eps).sqrt()


def _rescale(
    into: Moments, target: Statistics | None, slope: Tensor | None, module: _BatchNorm, args: tuple[Tensor, ...]
) -> None:
    """Note the moments of a batch norm's input, and make its output on this batch have the target's; a forward pre-hook."""
    x = args[0]
    into.add(x)
    if target is not None and slope is not None:
        own = Moments()
        own.add(x)
        _set_affine(module, own, target, slope, correction=0)


def _set_affine(module: _BatchNorm, moments: Moments, target: Statistics, slope: Tensor, correction: int) -> None:
    """Write the target into a batch norm that divides by the deviation with this correction and its eps: neither counts
    then, which matters where the input varies less than eps.

    `slope` is that of the network as it was: its sign stays, and where the input never varies the whole of it.
    """
    _, variance = moments.result()
    _, divisor = moments.result(correction)
    wanted = slope.sign() * target.deviation / variance.sqrt().clamp(min=SMALLEST)
    slope = torch.where(variance.sqrt() > SMALLEST, wanted, slope)
    module.weight.copy_(slope * (divisor + module.eps).sqrt())
    module.bias.copy_(target.mean)


def _correct(into: Moments, target: Statistics, module: nn.Module, args: tuple[Any, ...], given: Any) -> Any:
    """Note a layer's moments and return its output with the target's, by this batch's statistics; a forward hook."""
    axis, out = _axis(module), _result(given)
    into.add(out, axis)
    own = Moments()
    own.add(out, axis)
    scale, shift = _correction(own, target)
    shape = [1] * out.ndim
    shape[axis] = -1
    corrected = out * scale.to(out.dtype).view(shape) + shift.to(out.dtype).view(shape)
    return (corrected, *given[1:]) if isinstance(given, tuple) else corrected


def _writer(module: nn.Module) -> nn.Module:
    """Return the layer whose weight and bias make a module's output: of attention its last projection."""
    return module.out_proj if isinstance(module, nn.MultiheadAttention) else module


def _result(out: Any) -> Tensor:
    """Return a layer's output without what attention returns besides."""
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def _axis(module: nn.Module) -> int:
    """Return the axis of a layer's output that its units lie on."""
    return -1 if isinstance(module, nn.Linear | nn.MultiheadAttention) else 1


def _correction(moments: Moments, target: Statistics) -> tuple[Tensor, Tensor]:
    mean, variance = moments.result()
    deviation = variance.sqrt()
    alive = deviation > SMALLEST
    scale = torch.where(alive, target.deviation / deviation.clamp(min=SMALLEST), torch.ones_like(deviation))
    return scale, target.mean - scale * mean


def _fuse(module: nn.Module, moments: Moments, target: Statistics) -> None:
    """Write the correction into a layer's weight and bias."""
    layer: Any = _writer(module)
    scale, shift = (value.to(layer.weight.dtype) for value in _correction(moments, target))
    if isinstance(layer, TRANSPOSED):
        per_group = layer.out_channels // layer.groups
        rows = scale.view(layer.groups, 1, per_group).expand(-1, layer.in_channels // layer.groups, -1)
        layer.weight.mul_(rows.reshape(layer.in_channels, per_group, *[1] * (layer.weight.ndim - 2)))
    else:
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.mul_(scale).add_(shift)
