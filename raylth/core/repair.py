"""REPAIR: gives a network between two others the statistics that its end points would have (Jordan et al. 2023).

An interpolated network's units vary too little. Each layer's output is rescaled by a positive factor, channel by channel, to
the mean and deviation that lie between the end points'; with batch norm that is its affine part and its statistics, without
it the layer's own weight and bias, so nothing is left over that was not in the network before.
"""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.batches import Batches, inputs_of
from raylth.core.batchnorm import Moments, set_statistics
from raylth.core.graph import trace
from raylth.core.modes import in_mode
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
    norm follows, but for the one that gives the logits.

    A module that runs more than once in a forward pass, or has a tensor that something else uses too (tied weights), is none:
    one correction of its weights cannot fit all uses.
    """
    traced, sites = trace(model), []
    modules, shared = dict(traced.named_modules()), _shared(traced)
    for node in traced.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if module is None or module in shared:
            continue
        if isinstance(module, _BatchNorm) and module.affine:
            sites.append(str(node.target))
        elif isinstance(module, LAYERS) and module.bias is not None:
            followers = [modules.get(str(user.target)) if user.op == "call_module" else user.op for user in node.users]
            is_corrected = (isinstance(follower, _BatchNorm) and follower not in shared for follower in followers)
            if "output" not in followers and not any(is_corrected):
                sites.append(str(node.target))
    return sites


def _shared(traced: fx.GraphModule) -> set[nn.Module]:
    """Return the modules of which something is used more than once in a forward pass: they themselves, or a tensor."""
    modules = dict(traced.named_modules())
    called: list[nn.Module] = []
    uses: Counter[int] = Counter()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            called.append(modules[str(node.target)])
            uses.update(_tensors(called[-1]))
        elif node.op == "get_attr":
            place, _, name = str(node.target).rpartition(".")
            uses[id(getattr(modules[place], name))] += 1
    times = Counter(called)
    return {module for module in called if times[module] > 1 or any(uses[tensor] > 1 for tensor in _tensors(module))}


def _tensors(module: nn.Module) -> set[int]:
    """Return which tensors a module has, each by its identity."""
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


@precision("float32")
@torch.no_grad()
def site_statistics(model: nn.Module, batches: Batches) -> dict[str, Statistics]:
    """Return mean and deviation of every site's output over all samples and positions, the network in eval mode."""
    moments = {name: Moments() for name in repair_sites(model)}
    with ExitStack() as hooks, in_mode(model, training=False):
        for name, into in moments.items():
            module = model.get_submodule(name)
            axis = -1 if isinstance(module, nn.Linear) else 1
            handle = module.register_forward_hook(lambda _, __, out, into=into, axis=axis: into.add(out, axis))
            hooks.callback(handle.remove)
        for x in inputs_of(batches, model):
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
    batches: Batches,
) -> None:
    """Set every site's mean and standard deviation to (1 - alpha) A's + alpha B's, in place and in one pass.

    `model` is the network at alpha between A and B; the statistics come from `site_statistics` of the end points;
    `batches` yields network inputs (B, *in_shape), or (inputs, labels) as a DataLoader does. While a layer is measured, those
    before it are corrected already, by the statistics of the batch, so that of one batch A between A and A is A again. A
    batch norm's weight keeps its sign. A unit that never varies is only shifted, so a weight of 0 stays 0. Batch norms that
    are not a site have their statistics re-estimated, except those with a module or tensor that is used twice, which are
    unchanged, statistics included.
    Jordan et al. (2023), equations 4 and 5.
    Raises ValueError for no data, or statistics of another architecture.
    """
    sites, shared = repair_sites(model), _shared(trace(model))
    targets = _targets(sites, statistics_a, statistics_b, alpha)
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
        for x in inputs_of(batches, model):
            model(x)
    if modules and not any(seen.count for seen in moments.values()):
        raise ValueError("no samples: statistics need at least one batch")
    set_statistics({name: module for name, module in norms.items() if moments[name].count}, moments)
    for name in sites:
        module = modules[name]
        if isinstance(module, _BatchNorm):
            _set_affine(module, moments[name], targets[name], slopes[name], correction=1)
        else:
            _fuse(module, moments[name], targets[name])


def _targets(
    sites: list[str], statistics_a: dict[str, Statistics], statistics_b: dict[str, Statistics], alpha: float
) -> dict[str, Statistics]:
    """Return every site's statistics at alpha between A's and B's; ValueError where these are of other sites."""
    if set(sites) != set(statistics_a) or set(sites) != set(statistics_b):
        raise ValueError("the statistics belong to networks of another architecture")
    return {
        name: Statistics(
            torch.lerp(statistics_a[name].mean, statistics_b[name].mean, alpha),
            torch.lerp(statistics_a[name].deviation, statistics_b[name].deviation, alpha),
        )
        for name in sites
    }


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


def _correct(into: Moments, target: Statistics, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """Note a layer's moments and return its output with the target's, by this batch's statistics; a forward hook."""
    axis = -1 if isinstance(module, nn.Linear) else 1
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
