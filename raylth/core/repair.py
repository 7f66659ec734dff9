"""REPAIR: gives a network between two others the statistics that its end points would have (Jordan et al. 2023).

An interpolated network's units vary too little. Each layer's output is rescaled, channel by channel, to the mean and
deviation that lie between the end points'; with batch norm that is its affine part and its statistics, without it the
layer's own weight and bias, so nothing is left over that was not in the network before.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.batchnorm import Moments, set_statistics
from raylth.core.graph import trace
from raylth.core.modes import freeze_dropout, in_mode
from raylth.core.precision import precision

__all__ = ["Statistics", "repair", "repair_sites", "site_statistics"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
SMALLEST = 1e-12  # a deviation below this is a dead unit's


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of a site's channels, (C,) float64 each."""

    mean: Tensor
    deviation: Tensor


def repair_sites(model: nn.Module) -> list[str]:
    """Return the modules whose outputs are corrected: every affine batch norm, and every layer with a bias that no batch
    norm follows, but for the one that gives the logits."""
    traced, sites = trace(model), []
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _BatchNorm) and module.affine:
            sites.append(str(node.target))
        elif isinstance(module, LAYERS) and module.bias is not None:
            followers = [modules.get(str(user.target)) if user.op == "call_module" else user.op for user in node.users]
            if not any(isinstance(follower, _BatchNorm) or follower == "output" for follower in followers):
                sites.append(str(node.target))
    return list(dict.fromkeys(sites))


@precision("float32")
@torch.no_grad()
def site_statistics(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Statistics]:
    """Return mean and deviation of every site's output over all samples and positions, the network in eval mode."""
    moments = {name: Moments() for name in repair_sites(model)}
    with ExitStack() as hooks, in_mode(model, training=False):
        for name, into in moments.items():
            module = model.get_submodule(name)
            axis = -1 if isinstance(module, nn.Linear) else 1
            handle = module.register_forward_hook(lambda _, __, out, into=into, axis=axis: into.add(out, axis))
            hooks.callback(handle.remove)
        for x in batches:
            model(x)
    results = {name: moment.result() for name, moment in moments.items()}
    return {name: Statistics(mean, variance.sqrt()) for name, (mean, variance) in results.items()}


@precision("float32")
@torch.no_grad()
def repair(
    model: nn.Module,
    statistics_a: dict[str, Statistics],
    statistics_b: dict[str, Statistics],
    alpha: float,
    batches: Iterable[Tensor],
) -> None:
    """Set every site's mean and deviation to (1 - alpha) A's + alpha B's, in place and in one pass.

    `model` is the network at alpha between A and B; the statistics come from `site_statistics` of the end points;
    `batches` yields network inputs (B, *in_shape). While a layer is measured, those before it are corrected already, by
    the statistics of the batch. A unit that never varies is only shifted. Jordan et al. (2023), equations 4 and 5.
    Raises ValueError for no data, or statistics of another architecture.
    """
    sites = repair_sites(model)
    if set(sites) != set(statistics_a) or set(sites) != set(statistics_b):
        raise ValueError("the statistics belong to networks of another architecture")
    targets = {
        name: Statistics(
            torch.lerp(statistics_a[name].mean, statistics_b[name].mean, alpha),
            torch.lerp(statistics_a[name].deviation, statistics_b[name].deviation, alpha),
        )
        for name in sites
    }
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    modules = {name: model.get_submodule(name) for name in sites} | norms
    moments = {name: Moments() for name in modules}
    with ExitStack() as hooks, in_mode(model, training=True):
        for name, module in modules.items():
            if isinstance(module, _BatchNorm):
                handle = module.register_forward_pre_hook(
                    lambda layer, args, name=name: _rescaled(layer, args[0], moments[name], targets.get(name))
                )
            else:
                axis = -1 if isinstance(module, nn.Linear) else 1
                handle = module.register_forward_hook(
                    lambda _, __, out, name=name, axis=axis: _corrected(out, axis, moments[name], targets[name])
                )
            hooks.callback(handle.remove)
        freeze_dropout(model)
        for x in batches:
            model(x)
    set_statistics(norms, moments)
    for name in sites:
        module = modules[name]
        if isinstance(module, _BatchNorm):
            _set_affine(module, moments[name], targets[name], correction=1)
        else:
            _fuse(module, moments[name], targets[name])


def _rescaled(module: _BatchNorm, x: Tensor, into: Moments, target: Statistics | None) -> None:
    """Note the moments of a batch norm's input, and make its output on this batch have the target's."""
    into.add(x)
    if target is not None:
        own = Moments()
        own.add(x)
        _set_affine(module, own, target, correction=0)


def _set_affine(module: _BatchNorm, moments: Moments, target: Statistics, correction: int) -> None:
    """Write the target into a batch norm that divides by the deviation with this correction and its eps: neither counts
    then, which matters where the input varies less than eps."""
    _, variance = moments.result()
    _, divisor = moments.result(correction)
    alive = variance.sqrt() > SMALLEST
    lost = torch.where(alive, ((divisor + module.eps) / variance.clamp(min=SMALLEST**2)).sqrt(), torch.ones_like(variance))
    module.weight.copy_(target.deviation * lost)
    module.bias.copy_(target.mean)


def _corrected(out: Tensor, axis: int, into: Moments, target: Statistics) -> Tensor:
    """Note a layer's moments and return its output with the target's, by the statistics of this batch."""
    into.add(out, axis)
    own = Moments()
    own.add(out, axis)
    scale, shift = _correction(own, target)
    shape = [1] * out.ndim
    shape[axis] = -1
    return out * scale.to(out.dtype).view(shape) + shift.to(out.dtype).view(shape)


def _correction(moments: Moments, target: Statistics) -> tuple[Tensor, Tensor]:
    mean, variance = moments.result()
    deviation = variance.sqrt()
    alive = deviation > SMALLEST
    scale = torch.where(alive, target.deviation / deviation.clamp(min=SMALLEST), torch.ones_like(deviation))
    return scale, target.mean - scale * mean


def _fuse(module: nn.Module, moments: Moments, target: Statistics) -> None:
    """Write the correction into a layer's weight and bias."""
    assert isinstance(module, LAYERS)
    scale, shift = (value.to(module.weight.dtype) for value in _correction(moments, target))
    if isinstance(module, TRANSPOSED):
        per_group = module.out_channels // module.groups
        rows = scale.view(module.groups, 1, per_group).expand(-1, module.in_channels // module.groups, -1)
        module.weight.mul_(rows.reshape(module.in_channels, per_group, *[1] * (module.weight.ndim - 2)))
    else:
        module.weight.mul_(scale.view(-1, *[1] * (module.weight.ndim - 1)))
    assert module.bias is not None
    module.bias.mul_(scale).add_(shift)
