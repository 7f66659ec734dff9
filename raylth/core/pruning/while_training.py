"""Masks that change while the network is trained: gradual magnitude pruning, SET and RigL."""

import math

import torch
from torch import Tensor

from raylth.common.seeding import derive_seed
from raylth.core.masks import Mask, num_alive
from raylth.core.pruning.at_initialisation import random_erk
from raylth.core.pruning.finder import FINDERS, DynamicFinder, StartInputs, UpdateInputs
from raylth.core.pruning.magnitude import prune_global_magnitude

__all__ = ["cubic_num_alive", "drop_and_grow", "gradual_pruning", "rigl", "set_evolution"]

STEPS = 100  # between two changes, as in the papers of RigL and of gradual pruning


def cubic_num_alive(total: int, final: int, number: int, count: int) -> int:
    """Return how many of `total` weights are alive after change `number` of `count`, `final` after the last.

    The sparsity is s (1 - (1 - number / count)^3) with the final sparsity s (Zhu and Gupta 2017, equation 1, from 0).
    """
    return total - round((total - final) * (1 - (1 - number / count) ** 3))


def gradual_pruning(inputs: UpdateInputs) -> Mask:
    """Prune the smallest magnitudes of all layers together, as many as the cubic schedule asks for.

    Zhu and Gupta (2017), section 3; they prune each layer by the same share, here the threshold is global as in IMP.
    """
    alive, total = num_alive(inputs.mask), sum(mask.numel() for mask in inputs.mask.values())
    wanted = cubic_num_alive(total, inputs.num_alive, inputs.number, inputs.count)
    return prune_global_magnitude(inputs.weights, inputs.mask, count=max(0, alive - wanted))


def drop_and_grow(weight: Tensor, alive: Tensor, score: Tensor, count: int) -> Tensor:
    """Return a layer's mask without its `count` smallest magnitudes, and with the `count` largest scores of what is left out.

    All three tensors have the weight's shape; `score` ranks what may grow. Those just dropped may grow back. Of equal values
    the first in flat order is dropped and grown first. As many are alive as before.
    """
    magnitude = weight.detach().abs().flatten().masked_fill(~alive.flatten(), math.inf)
    kept = alive.flatten().clone()
    kept[magnitude.argsort(stable=True)[:count]] = False
    ranked = score.flatten().masked_fill(kept, -math.inf)
    kept[ranked.argsort(descending=True, stable=True)[:count]] = True
    return kept.reshape(alive.shape)


def set_evolution(inputs: UpdateInputs) -> Mask:
    """Replace a fraction of each layer's weights, the smallest, by as many others at random.

    Mocanu et al. (2018), SET, Algorithm 1, with magnitudes in the place of smallest positive and largest negative weights.
    """
    found = {}
    for name, alive in inputs.mask.items():
        generator = torch.Generator().manual_seed(derive_seed(inputs.seed, "set", name))
        score = torch.rand(alive.numel(), generator=generator).to(alive.device)
        count = _replaced(alive, inputs.fraction)
        found[name] = drop_and_grow(inputs.weights[name], alive, score, count)
    return found


def rigl(inputs: UpdateInputs) -> Mask:
    """Replace a fraction of each layer's weights, the smallest, by those with the largest gradients.

    Evci et al. (2020), RigL, Algorithm 1; the fraction falls from `inputs.fraction` to 0 by half a cosine (their section 3).
    """
    fraction = inputs.fraction / 2 * (1 + math.cos(math.pi * inputs.progress))
    return {
        name: drop_and_grow(inputs.weights[name], alive, inputs.gradients[name].abs(), _replaced(alive, fraction))
        for name, alive in inputs.mask.items()
    }


def _replaced(alive: Tensor, fraction: float) -> int:
    """Return how many of a layer's weights are replaced: no more than it has pruned ones."""
    count = int(alive.sum())
    return min(int(fraction * count), alive.numel() - count)


def _full(inputs: StartInputs) -> Mask:
    return {name: alive.clone() for name, alive in inputs.mask.items()}


def _random(inputs: StartInputs) -> Mask:
    return random_erk(inputs.mask, inputs.num_alive, inputs.seed)


FINDERS.register("gmp")(
    DynamicFinder(_full, gradual_pruning, "gradual magnitude pruning while A is trained", every=STEPS, until=0.75)
)
FINDERS.register("set")(
    DynamicFinder(_random, set_evolution, "sparse evolutionary training of A: the smallest weights give way to random ones")
)
FINDERS.register("rigl")(
    DynamicFinder(
        _random,
        rigl,
        "sparse training of A in which the smallest weights give way to those with the largest gradients (RigL)",
        every=STEPS,
        until=0.75,
        replaces_step=True,
    )
)
