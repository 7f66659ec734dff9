"""Masks found before any training: SNIP, GraSP, SynFlow, and random ones with ERK densities."""

import copy
from collections.abc import Iterable, Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylth.common.seeding import derive_seed
from raylth.core.fixed_entries import FixedEntries
from raylth.core.masks import Mask
from raylth.core.precision import precision
from raylth.core.pruning.finder import FINDERS, FinderInputs, MaskFinder

__all__ = ["erk_densities", "grasp_scores", "keep_highest", "random_erk", "snip_scores", "synflow", "synflow_scores"]

SAMPLES_PER_CLASS = 10  # that SNIP and GraSP read, as the latter's authors do for CIFAR
TEMPERATURE = 200.0  # by which GraSP's authors divide logits
ROUNDS = 100  # of SynFlow

Batches = Iterable[tuple[Tensor, Tensor]]  # inputs (B, *in_shape), labels (B,)


def keep_highest(scores: Mapping[str, Tensor], num_alive: int) -> Mask:
    """Keep the entries with the highest scores over all tensors, exactly so many; of equal ones the last in flat order.

    Raises ValueError for a score that is NaN, with the tensor's name.
    """
    for name, score in scores.items():
        if torch.isnan(score).any():
            raise ValueError(f"{name} has a score that is NaN")
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    kept[flat.argsort(stable=True)[len(flat) - num_alive :]] = True
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def snip_scores(network: nn.Module, names: Iterable[str], batches: Batches) -> dict[str, Tensor]:
    """Return |weight * gradient of the loss| of each weight: how much the loss depends on whether it is there.

    Lee et al. (2019), SNIP, equations 5 and 6 without the latter's normalisation. The gradient is that of the cross-entropy
    summed over all samples of `batches`, the network in training mode; it is left as it was.
    """
    model, weights = _copied(network, names)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for x, y in batches:
        loss = F.cross_entropy(model(x), y, reduction="sum")
        for name, slope in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += slope
    return {name: (weight * total[name]).detach().abs() for name, weight in weights.items()}


def grasp_scores(network: nn.Module, names: Iterable[str], batches: Batches) -> dict[str, Tensor]:
    """Return weight * (Hessian @ gradient) of each weight: what gradient flow would lose without it; the highest are kept.

    Wang et al. (2020), GraSP, equation 8 (their S(-theta) is its negative, of which the lowest are kept). The loss is that of
    the logits divided by `TEMPERATURE`, the network in training mode; it is left as it was.
    """
    model, weights = _copied(network, names)
    held = list(batches)
    slopes = [torch.zeros_like(weight) for weight in weights.values()]
    for x, y in held:
        found = torch.autograd.grad(F.cross_entropy(model(x) / TEMPERATURE, y), list(weights.values()))
        slopes = [one + other for one, other in zip(slopes, found, strict=True)]
    total = [torch.zeros_like(weight) for weight in weights.values()]
    for x, y in held:
        loss = F.cross_entropy(model(x) / TEMPERATURE, y)
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        along = torch.stack([(slope * each).sum() for slope, each in zip(slopes, found, strict=True)]).sum()
        for sum_, product in zip(total, torch.autograd.grad(along, list(weights.values())), strict=True):
            sum_ += product
    return {name: (weight * product).detach() for (name, weight), product in zip(weights.items(), total, strict=True)}


def synflow_scores(network: nn.Module, mask: Mask, in_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return |weight| * gradient of the network of magnitudes on an input of ones: a flow that each layer conserves.

    Tanaka et al. (2020), SynFlow, Algorithm 1; in float64 and in evaluation mode, with `mask` applied. The network is left as
    it was.
    """
    model, weights = _copied(network, mask, training=False)
    model.double()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.abs_()
        for module in model.modules():
            if isinstance(module, FixedEntries):
                module.values.abs_()
        weights = {name: model.get_parameter(name) for name in mask}
        for name, weight in weights.items():
            weight.mul_(mask[name])
    first = next(iter(weights.values()))
    flow = model(torch.ones(1, *in_shape, dtype=torch.float64, device=first.device)).sum()
    slopes = torch.autograd.grad(flow, list(weights.values()))
    return {name: (weight * slope).detach() for (name, weight), slope in zip(weights.items(), slopes, strict=True)}


def synflow(network: nn.Module, mask: Mask, in_shape: tuple[int, ...], num_alive: int, rounds: int = ROUNDS) -> Mask:
    """Prune by SynFlow's scores in rounds that keep the same share each, so that no layer is emptied while another has more.

    Tanaka et al. (2020), Algorithm 1. Exactly `num_alive` entries of the mask that is returned are True.
    """
    total = sum(alive.numel() for alive in mask.values())
    for number in range(1, rounds + 1):
        scores = synflow_scores(network, mask, in_shape)
        ranked = {name: scores[name].masked_fill(~mask[name], -1.0) for name in mask}  # what is pruned stays so
        wanted = round(total * (num_alive / total) ** (number / rounds)) if number < rounds else num_alive
        mask = keep_highest(ranked, wanted)
    return mask


def erk_densities(shapes: Mapping[str, tuple[int, ...]], num_alive: int) -> dict[str, int]:
    """Return how many weights of each tensor stay, `num_alive` in all, by the Erdos-Renyi-Kernel rule.

    A tensor's density is in proportion to the sum of its axes over their product, at most 1 (Evci et al. 2020, RigL, section
    3). The remainder after rounding down is given to the tensors with the largest fractions.
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / prod(shape) for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        free = [name for name in shapes if name not in full]
        left = num_alive - sum(sizes[name] for name in full)
        scale = left / sum(raw[name] * sizes[name] for name in free) if free else 0.0
        dense = {name for name in free if scale * raw[name] > 1}
        if not dense:
            break
        full |= dense
    wanted = {name: float(sizes[name]) if name in full else scale * raw[name] * sizes[name] for name in shapes}
    counts = {name: int(count) for name, count in wanted.items()}
    missing = num_alive - sum(counts.values())
    for name in sorted((name for name in shapes if counts[name] < sizes[name]), key=lambda name: counts[name] - wanted[name]):
        if missing == 0:
            break
        counts[name] += 1
        missing -= 1
    return counts


def random_erk(mask: Mask, num_alive: int, seed: int) -> Mask:
    """Return a random mask with `erk_densities`."""
    counts = erk_densities({name: tuple(alive.shape) for name, alive in mask.items()}, num_alive)
    found = {}
    for name, alive in mask.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "erk", name))
        kept = torch.zeros(alive.numel(), dtype=torch.bool)
        kept[torch.randperm(alive.numel(), generator=generator)[: counts[name]]] = True
        found[name] = kept.reshape(alive.shape).to(alive.device)
    return found


def _copied(network: nn.Module, names: Iterable[str], *, training: bool = True) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of a network in a mode, and those of its weights that are scored."""
    model = copy.deepcopy(network).train(training)
    return model, {name: model.get_parameter(name) for name in names}


@precision("float32")
def _snip(network: nn.Module, inputs: FinderInputs) -> Mask:
    return keep_highest(snip_scores(network, inputs.mask, inputs.batches(SAMPLES_PER_CLASS)), inputs.num_alive)


@precision("float32")
def _grasp(network: nn.Module, inputs: FinderInputs) -> Mask:
    return keep_highest(grasp_scores(network, inputs.mask, inputs.batches(SAMPLES_PER_CLASS)), inputs.num_alive)


def _synflow(network: nn.Module, inputs: FinderInputs) -> Mask:
    x, _ = next(iter(inputs.batches(1)))
    return synflow(network, inputs.mask, tuple(x.shape[1:]), inputs.num_alive)


def _random_erk(network: nn.Module, inputs: FinderInputs) -> Mask:
    return random_erk(inputs.mask, inputs.num_alive, inputs.seed)


FINDERS.register("snip")(
    MaskFinder(_snip, "the weights that the loss depends on most at initialisation (SNIP)", "initial", reads_samples=True)
)
FINDERS.register("grasp")(
    MaskFinder(
        _grasp, "the weights that gradient flow at initialisation depends on most (GraSP)", "initial", reads_samples=True
    )
)
FINDERS.register("synflow")(
    MaskFinder(_synflow, "the weights with most synaptic flow at initialisation (SynFlow)", "initial", reads_samples=True)
)
FINDERS.register("erk")(
    MaskFinder(_random_erk, "weights at random, with densities by layer (Erdos-Renyi-Kernel)", "initial", needs_seed=True)
)
