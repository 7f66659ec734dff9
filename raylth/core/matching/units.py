"""What a group's units own of a network's tensors, as matrices: a row for each unit."""

from collections.abc import Mapping

import torch
from torch import Tensor

from raylth.core.permutation import PermutationSpec
from raylth.core.permutation.permutation import permute
from raylth.core.permutation.spec import Part

__all__ = [
    "Place",
    "as_matrix",
    "by_block",
    "by_unit",
    "compared",
    "entries_of",
    "inner_product",
    "moved_by",
    "num_at_once",
    "taken",
]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of the data, not of the weights

ENTRIES = 2**24  # of a tensor that are copied at a time
LARGE = 2**16  # entries of a tensor that is not copied without need

Place = tuple[str, int, Part]  # tensor, axis, part with the units of one group in front


def compared(spec: PermutationSpec) -> list[str]:
    """Return the tensors by which weights are matched: those that hold units, tied ones once, without statistics."""
    once = [name for name in spec.axes if name not in spec.tied]
    return [name for name in once if not name.endswith(STATISTICS) and any(spec.axes[name])]


def as_matrix(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, with two axes at least."""
    tensor = tensor.detach().float()
    return tensor[:, None] if tensor.ndim == 1 else tensor


def inner_product(one: Tensor, other: Tensor) -> float:
    """Return the inner product of two tensors, added up in float64."""
    one, other, size = one.reshape(-1), other.reshape(-1), 2**20
    pieces = ((one[place : place + size], other[place : place + size]) for place in range(0, len(one), size))
    return sum(torch.dot(x.double(), y.double()).item() for x, y in pieces)


def num_at_once(tensor: Tensor, dim: int) -> int:
    """Return how many entries of an axis are copied at a time."""
    return max(1, ENTRIES * tensor.shape[dim] // max(1, tensor.numel()))


def taken(tensor: Tensor, order: Mapping[int, Tensor]) -> Tensor:
    """Return a tensor with the given entries of some axes."""
    for dim, index in order.items():
        if tensor.numel() > LARGE and torch.equal(index, torch.arange(first := int(index[0]), first + len(index))):
            tensor = tensor.narrow(dim, first, len(index))  # no copy
        else:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def entries_of(tensor: Tensor, dim: int, part: Part) -> Tensor:
    """Return the entries of a part, unit by unit."""
    entries = part.entries().flatten()
    first = int(entries[0])
    if torch.equal(entries, torch.arange(first, first + len(entries))):
        return tensor.narrow(dim, first, len(entries))  # no copy
    return tensor.index_select(dim, entries.to(tensor.device))


def by_unit(tensor: Tensor, dim: int, count: int) -> Tensor:
    """Return what a group's units own of a tensor that has them one after the other on an axis: (units, everything else)."""
    return tensor.movedim(dim, 0).reshape(count, -1)


def by_block(tensor: Tensor, place: Place, units: int, inner: int) -> Tensor:
    """Return what a group's units own, by what they are within: (outer units, units inside, everything else)."""
    _, dim, part = place
    if not part.beside:
        return by_unit(entries_of(tensor, dim, part), dim, units).reshape(units // inner, inner, -1)
    ((other, rows),) = part.beside  # the units on this axis are others for each block of entries of that one
    rest = [axis for axis in range(tensor.ndim) if axis not in (other, dim)]
    table = tensor.permute(other, dim, *rest)[rows.entries().reshape(rows.sizes[0], -1)][:, :, part.entries().flatten()]
    return table.movedim(2, 1).reshape(rows.sizes[0], inner, -1)


def moved_by(spec: PermutationSpec, name: str, tensor: Tensor, perms: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor with all its units moved."""
    shape = [*tensor.shape[: len(spec.axes[name])]]
    return permute(spec, name, tensor.reshape(shape), perms).reshape(tensor.shape)
