"""Global magnitude pruning with exact counts, and the arithmetic of the iterative trunk."""

from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from raylth.core.masks import Mask

__all__ = ["num_landing_alive", "prune_global_magnitude", "trunk_counts"]

MOST_ROUNDS = 10_000  # of one trunk


def prune_global_magnitude(
    weights: Mapping[str, Tensor], mask: Mapping[str, Tensor], *, fraction: float | None = None, count: int | None = None
) -> Mask:
    """Prune the weights of smallest magnitude among those still alive, over all tensors at once.

    `mask` maps names to bool tensors (True: alive), `weights` at least the same names to tensors of the same shapes, as
    a state dict does. Give one of two: `fraction`, in [0, 1], of the alive weights, of which exactly
    `round(fraction * alive)` are pruned (Python's rounding: halves go to the even number); or `count`, how many. Ties
    break by flat index: of equal magnitudes the first in the order of `mask`, then of memory, is pruned first.
    Returns a new mask; pruned weights stay pruned.

    Raises ValueError for a missing name, another shape, both or neither of `fraction` and `count`, one of them out of
    range, or an alive weight that is NaN.
    """
    _check(weights, mask)
    mask = {name: alive.bool() for name, alive in mask.items()}
    alive = torch.cat([mask[name].flatten() for name in mask]) if mask else torch.zeros(0, dtype=torch.bool)
    number = _number(fraction, count, int(alive.sum()))
    if number == 0:
        return {name: kept.clone() for name, kept in mask.items()}
    magnitude = torch.cat([weights[name].detach().abs().flatten() for name in mask])
    index = alive.nonzero().squeeze(1)  # (num_alive,) flat indices, ascending
    candidates = magnitude[index]
    if torch.isnan(candidates).any():
        raise ValueError(f"{_first_nan(weights, mask)} holds NaN among the weights that are alive; nothing was pruned")
    threshold = candidates.kthvalue(number).values  # the number-th smallest
    below = candidates < threshold
    ties = (candidates == threshold).nonzero().squeeze(1)[: number - int(below.sum())]
    pruned = below.clone()
    pruned[ties] = True
    alive = alive.clone()
    alive[index[pruned]] = False
    sizes = [mask[name].numel() for name in mask]
    parts = zip(mask, alive.split(sizes), strict=True)
    return {name: part.reshape(mask[name].shape) for name, part in parts}


def trunk_counts(
    total: int, fraction: float, target_alive: int, nearest: Callable[[int], int] = lambda wanted: wanted
) -> list[int]:
    """List how many weights are alive after each full round of the trunk, before the landing on `target_alive`.

    Starts with `total` (round 0) and continues while a full round, which prunes `round(fraction * alive)`, keeps at least
    `target_alive`. The landing round prunes `counts[-1] - target_alive` more; when that is 0, the trunk lands by itself.
    `nearest` returns the number of alive weights that masks can have which is nearest to one (`nearest_alive`).
    Raises ValueError when a round would prune nothing before the target is reached, and for more than 10,000 rounds.
    """
    counts = [total]
    while counts[-1] > target_alive:
        pruned = counts[-1] - nearest(counts[-1] - round(fraction * counts[-1]))
        if pruned == 0:
            raise ValueError(f"a round of {fraction:g} prunes none of {counts[-1]} weights that are alive")
        if counts[-1] - pruned < target_alive:
            break
        counts.append(counts[-1] - pruned)
        if len(counts) > MOST_ROUNDS:
            raise ValueError(f"a round of {fraction:g} prunes so little that {MOST_ROUNDS:,} rounds are not enough")
    return counts


def num_landing_alive(total: int, sparsity: float) -> int:
    """Return how many of `total` prunable weights stay alive at `sparsity`: `total - round(sparsity * total)`."""
    return total - round(sparsity * total)


def _number(fraction: Any, count: Any, num_alive: int) -> int:
    """Return how many weights to prune; ValueError unless one of the two says so, within its range."""
    if (fraction is None) == (count is None):
        raise ValueError("give either fraction (of the alive weights, 0 to 1) or count (how many weights)")
    if fraction is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, Real) or not 0.0 <= float(fraction) <= 1.0:
            hint = "; to prune that many weights, give count" if isinstance(fraction, Integral) else ""
            raise ValueError(f"fraction must be a number from 0 to 1, not {fraction!r}{hint}")
        return round(float(fraction) * num_alive)
    if isinstance(count, bool) or not isinstance(count, Integral):
        hint = "; to prune a share of the weights, give fraction" if isinstance(count, Real) else ""
        raise ValueError(f"count must be a whole number of weights, not {count!r}{hint}")
    if not 0 <= int(count) <= num_alive:
        raise ValueError(f"cannot prune {count} weights: {num_alive} are alive")
    return int(count)


def _check(weights: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> None:
    for name in mask:
        if name not in weights:
            raise ValueError(f"the mask names {name!r}, which is not among the weights")
        if weights[name].shape != mask[name].shape:
            shapes = f"{tuple(weights[name].shape)} and {tuple(mask[name].shape)}"
            raise ValueError(f"{name}: weight and mask must have the same shape, not {shapes}")


def _first_nan(weights: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> str:
    return next(name for name in mask if torch.isnan(weights[name][mask[name]]).any())
