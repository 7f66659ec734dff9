"""Magnitude pruning under a pattern, with exact counts: how many weights a pattern can keep, and which."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from raylth.core.masks import Mask, num_alive
from raylth.core.pruning.magnitude import num_landing_alive, prune_global_magnitude
from raylth.core.pruning.structure import Structure
from raylth.core.pruning.units import UnitGroup, is_out, unit_scores, units_mask

__all__ = ["TOLERANCE", "landing_alive", "nearest_alive", "prune_structured"]

TOLERANCE = 5e-3  # between a sparsity that is asked for and the nearest that a pattern has

Shapes = Mapping[str, Sequence[int]]  # of masked weights


def prune_structured(
    weights: Mapping[str, Tensor],
    mask: Mapping[str, Tensor],
    structure: Structure,
    *,
    num_alive: int,
    units: Sequence[UnitGroup] = (),
) -> Mask:
    """Prune what has the smallest magnitude under a pattern until exactly `num_alive` weights are alive.

    `mask` maps names to bool tensors (True: alive) and has the pattern already, `weights` at least the same names to tensors
    of the same shapes. Every layer, or group of units, loses the same share of its parts, as nearly as whole parts allow: of
    its blocks by the sum of their magnitudes, of the weights of each output, or of its units by the sum of the magnitudes of
    all that writes them; `units` are the network's (`removable_units`). N:M keeps the `n` largest of each `m`. Layers
    without the pattern are pruned weight by weight, under N:M those of all such layers together. Ties break by flat index,
    the first is pruned first. Without a pattern it is `prune_global_magnitude`. Pruned weights stay pruned.

    Raises ValueError for a number of weights that the pattern cannot keep (`nearest_alive`), or not from this mask.
    """
    if structure.pattern == "unstructured":
        return prune_global_magnitude(weights, mask, count=_alive(mask) - num_alive)
    shapes = {name: tuple(alive.shape) for name, alive in mask.items()}
    above, below, counts = _nearest(structure, shapes, num_alive, units)
    if num_alive not in (above, below):
        raise ValueError(f"{structure}: {num_alive:,} weights cannot stay alive; the nearest are {above:,} and {below:,}")
    found: Mask
    if structure.pattern == "units":
        removed = counts[num_alive]
        out = {group.name: _lowest(unit_scores(weights, group), is_out(mask, group), removed[group.name]) for group in units}
        found = units_mask(mask, units, out)
    elif structure.pattern == "nm":
        found = _prune_nm(weights, mask, structure, num_alive)
    else:
        removed = counts[num_alive]
        found = {name: _prune_layer(weights[name], alive, structure, removed[name]) for name, alive in mask.items()}
    if any(bool((found[name] & ~alive.to(found[name].device)).any()) for name, alive in mask.items()):
        raise ValueError(f"{structure}: the mask has already lost what it would have to keep")
    return found


def nearest_alive(structure: Structure, shapes: Shapes, wanted: int, units: Sequence[UnitGroup] = ()) -> int:
    """Return the number of alive weights that a pattern can have which is nearest to `wanted`; of two, the larger."""
    if structure.pattern == "unstructured":
        return wanted
    above, below, _ = _nearest(structure, shapes, wanted, units)
    return above if above - wanted <= wanted - below else below


def landing_alive(structure: Structure, shapes: Shapes, sparsity: float, units: Sequence[UnitGroup] = ()) -> int:
    """Return how many weights stay alive at a sparsity: of the numbers that the pattern can have the nearest.

    Raises ValueError, with the nearest sparsities that it can have, for one that is further off than 0.005.
    """
    total = sum(map(prod, shapes.values()))
    wanted = num_landing_alive(total, sparsity)
    found = nearest_alive(structure, shapes, wanted, units)
    if structure.pattern == "unstructured" or abs(found - (1 - sparsity) * total) <= TOLERANCE * total:
        return found
    above, below, _ = _nearest(structure, shapes, wanted, units)
    nearest = " and ".join(f"{1 - alive / total:.4f}" for alive in dict.fromkeys((above, below)))
    raise ValueError(f"{sparsity:g} is no sparsity that {structure} can have here: the nearest are {nearest}")


@dataclass(frozen=True)
class _Parts:
    """What a layer or a group can lose, part by part."""

    count: int
    most: int  # of them that can be removed

    def removed(self, numerator: int, denominator: int, *, is_included: bool) -> int:
        """Return how many parts are gone at a share: part number j, from 1 on, is removed at (j - 1/2) / count."""
        doubled = 2 * numerator * self.count
        at_most = (doubled + denominator) // (2 * denominator)
        before = -(-(doubled + denominator) // (2 * denominator)) - 1
        return min(self.most, at_most if is_included else before)


def _nearest(
    structure: Structure, shapes: Shapes, wanted: int, units: Sequence[UnitGroup]
) -> tuple[int, int, dict[int, dict[str, int]]]:
    """Return the smallest possible number of weights that is at least `wanted`, the largest below, and what each removes.

    Parts are removed in one order whatever the weights: by the share of its layer that a part has (Sainte-Lague's
    rule), so that a sparser mask never has more of a layer.
    """
    if structure.pattern == "nm":
        assert structure.n is not None
        assert structure.m is not None
        total = sum(map(prod, shapes.values()))
        fitting = sum(prod(shape) for shape in shapes.values() if structure.fits(shape))
        only = num_landing_alive(total, 1 - structure.n / structure.m) if fitting else total
        return only, only, {only: {}}
    parts, alive = _parts(structure, shapes, units)
    names = list(parts)

    def at(place: int, number: int) -> dict[str, int]:
        """Return what is removed once part `number` of the name at a place is."""
        share = (2 * number - 1, 2 * parts[names[place]].count)
        return {name: part.removed(*share, is_included=n <= place) for n, (name, part) in enumerate(parts.items())}

    none = dict.fromkeys(names, 0)
    last: tuple[int, dict[str, int]] = (alive(none), none)
    after: tuple[int, dict[str, int]] | None = None
    for place, name in enumerate(names):
        low, high = 0, parts[name].most  # the most parts of it with which `wanted` weights stay
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if alive(at(place, middle)) >= wanted else (low, middle - 1)
        if low and (kept := alive(found := at(place, low))) < last[0]:
            last = kept, found
        if low < parts[name].most and (after is None or alive(at(place, low + 1)) > after[0]):
            after = alive(at(place, low + 1)), at(place, low + 1)
    after = last if after is None else after
    return last[0], after[0], {after[0]: after[1], last[0]: last[1]}


def _parts(
    structure: Structure, shapes: Shapes, units: Sequence[UnitGroup]
) -> tuple[dict[str, _Parts], Callable[[Mapping[str, int]], int]]:
    """Return what can be removed from each layer or group, and what counts the weights that are then alive."""
    if structure.pattern == "units":
        return {group.name: _Parts(group.size, group.size - 1) for group in units}, _UnitCounter(shapes, units)
    parts, sizes = {}, {}
    for name, shape in shapes.items():
        if not structure.fits(shape):
            parts[name], sizes[name] = _Parts(prod(shape), prod(shape)), 1
        elif structure.pattern == "fan_in":
            parts[name], sizes[name] = _Parts(prod(shape[1:]), prod(shape[1:]) - 1), shape[0]
        else:
            assert structure.rows is not None
            assert structure.columns is not None
            sizes[name] = structure.rows * structure.columns * prod(shape[2:])
            parts[name] = _Parts(prod(shape) // sizes[name], prod(shape) // sizes[name])
    total = sum(map(prod, shapes.values()))
    return parts, lambda removed: total - sum(sizes[name] * removed[name] for name in sizes)


class _UnitCounter:
    """Counts the weights that are alive when so many units of each group are removed."""

    def __init__(self, shapes: Shapes, units: Sequence[UnitGroup]) -> None:
        self.shapes = shapes
        self.each: dict[tuple[str, int], list[tuple[str, int]]] = {}  # tensor, axis -> groups, entries of each unit
        for group in units:
            for place in (*group.writes, *group.reads):
                self.each.setdefault((place.tensor, place.axis), []).append((group.name, place.entries.shape[1]))

    def __call__(self, removed: Mapping[str, int]) -> int:
        """Return the number of weights."""
        total = 0
        for name, shape in self.shapes.items():
            lost = [sum(removed[group] * count for group, count in self.each.get((name, axis), ())) for axis in (0, 1)]
            total += prod(length - (lost[axis] if axis < 2 else 0) for axis, length in enumerate(shape))
        return total


def _alive(mask: Mapping[str, Tensor]) -> int:
    return num_alive(mask)


def _lowest(scores: Tensor, out: Tensor, number: int) -> Tensor:
    """Return which of some units are removed, (units,) bool: those that are out already, then the lowest scores."""
    order = scores.masked_fill(out, -1.0).argsort(stable=True)
    found = torch.zeros_like(out)
    found[order[:number]] = True
    return found


def _prune_nm(weights: Mapping[str, Tensor], mask: Mapping[str, Tensor], structure: Structure, wanted: int) -> Mask:
    """Keep n of m in the layers that have the pattern, and in the others together what is missing to the number wanted."""
    assert structure.n is not None
    found: Mask = {}
    for name, alive in mask.items():
        if structure.fits(alive.shape):
            scores = structure.cells(_magnitude(weights[name], alive))
            found[name] = structure.uncells(_largest(scores, structure.n), alive.shape)
    rest = {name: alive for name, alive in mask.items() if name not in found}
    missing = wanted - _alive(found)
    found |= prune_global_magnitude(weights, rest, count=_alive(rest) - missing)
    return {name: found[name] for name in mask}


def _prune_layer(weight: Tensor, alive: Tensor, structure: Structure, number: int) -> Tensor:
    """Return a layer's mask without so many of its parts."""
    scores = _magnitude(weight, alive)
    if not structure.fits(alive.shape):
        return _largest(scores.reshape(1, -1), alive.numel() - number).reshape(alive.shape)
    cells = structure.cells(scores)
    if structure.pattern == "fan_in":
        return structure.uncells(_largest(cells, cells.shape[1] - number), alive.shape)
    kept = _largest(cells.double().sum(1)[None], len(cells) - number)[0]  # a pruned block has a negative sum
    return structure.uncells(kept[:, None].expand_as(cells), alive.shape)


def _magnitude(weight: Tensor, alive: Tensor) -> Tensor:
    """Return magnitudes, -1 for what is pruned; ValueError for an alive weight that is NaN."""
    magnitude = weight.detach().abs().masked_fill(~alive, -1.0)
    if torch.isnan(magnitude).any():
        raise ValueError("the weights hold NaN among those that are alive; nothing was pruned")
    return magnitude


def _largest(scores: Tensor, number: int) -> Tensor:
    """Return which entries of each row are among its largest; of equal ones the last."""
    order = scores.argsort(dim=1, stable=True)[:, scores.shape[1] - number :]
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(1, order, True)
