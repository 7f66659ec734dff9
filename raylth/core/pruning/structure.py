"""Patterns that a mask can have: N:M, blocks, constant fan-in and whole units, beside none at all.

A weight is (out, in, *kernel). A layer whose axes a pattern does not divide evenly (a first convolution of 3 channels under
2:4) does not have it: its weights are pruned one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from raylth.common.seeding import derive_seed
from raylth.core.masks import Mask
from raylth.core.pruning.units import UnitGroup, is_out, units_mask

__all__ = ["PATTERNS", "UNSTRUCTURED", "Structure", "keeps", "shuffle_structured"]

PATTERNS = {  # pattern -> the sizes that it has
    "unstructured": (),
    "nm": ("n", "m"),
    "block": ("rows", "columns"),
    "fan_in": (),
    "units": (),
}
LARGEST = 4096  # of a size


@dataclass(frozen=True)
class Structure:
    """A pattern and its sizes.

    - `unstructured`: any weights.
    - `nm`: exactly `n` of each `m` consecutive inputs of an output, at each position of the kernel by itself (Zhou et al.
      2021, *Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch*).
    - `block`: blocks of `rows` outputs x `columns` inputs, with their whole kernels, alive or pruned as a whole.
    - `fan_in`: the same number of weights for each output of a layer (Lasby et al. 2024, *Dynamic Sparse Training with
      Structured Sparsity*, SRigL).
    - `units`: units of a symmetry group with all weights that write or read them (filters: Li et al. 2017, *Pruning Filters
      for Efficient ConvNets*).

    Raises ValueError for a pattern that is none of these, and for a size that is missing, unused or out of range.
    """

    pattern: str = "unstructured"
    n: int | None = None
    m: int | None = None
    rows: int | None = None
    columns: int | None = None

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern: {self.pattern!r} is unknown (known: {', '.join(PATTERNS)})")
        for name in ("n", "m", "rows", "columns"):
            value: Any = getattr(self, name)
            if value is None and name in PATTERNS[self.pattern]:
                raise ValueError(f"{name}: the pattern {self.pattern} needs it")
            if value is not None and name not in PATTERNS[self.pattern]:
                raise ValueError(f"{name}: the pattern {self.pattern} has none")
            if value is not None and not (isinstance(value, int) and 1 <= value <= LARGEST):
                raise ValueError(f"{name}: should be a whole number from 1 to {LARGEST}, found {value!r}")
        if self.pattern == "nm" and self._n >= self._m:
            raise ValueError(f"n: {self.n} of {self.m} prunes nothing: n must be below m")

    def __str__(self) -> str:
        """Return its name as people write it."""
        if self.pattern == "nm":
            return f"{self.n}:{self.m}"
        if self.pattern == "block":
            return f"blocks of {self.rows} x {self.columns}"
        return {"fan_in": "constant fan-in", "units": "whole units"}.get(self.pattern, self.pattern)

    @property
    def _n(self) -> int:
        assert self.n is not None
        return self.n

    @property
    def _m(self) -> int:
        assert self.m is not None
        return self.m

    @property
    def runs(self) -> dict[int, int]:
        """Axis of a weight -> how many consecutive entries of it stay together wherever a permutation moves them.

        Constant fan-in needs none: a permutation of outputs moves rows as wholes, one of inputs moves weights inside each
        row. Neither do whole units, which move with all that belongs to them.
        """
        if self.pattern == "nm":
            return {1: self._m}
        if self.pattern == "block":
            assert self.rows is not None
            assert self.columns is not None
            return {axis: size for axis, size in enumerate((self.rows, self.columns)) if size > 1}
        return {}

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a layer's weight of this shape has the pattern."""
        if self.pattern in ("unstructured", "units"):
            return False
        return len(shape) > 1 and all(shape[axis] % size == 0 for axis, size in self.runs.items())

    def blocks(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, dict[int, int]]:
        """Return what `restrict` needs to know: masked weight -> axis -> number of consecutive entries that stay together."""
        return {name: dict(self.runs) for name, shape in shapes.items() if self.runs and self.fits(shape)}

    def cells(self, tensor: Tensor) -> Tensor:
        """Return a weight (out, in, *kernel) as a table (cells, entries).

        A cell is what the pattern looks at: `m` inputs at one position, a block, or all weights of an output.
        """
        if self.pattern == "nm":
            return tensor.movedim(1, -1).reshape(-1, self._m)
        if self.pattern == "block":
            rows, columns = self._block
            out, inputs = tensor.shape[:2]
            table = tensor.reshape(out // rows, rows, inputs // columns, columns, -1)
            return table.permute(0, 2, 1, 3, 4).reshape(-1, rows * columns * prod(tensor.shape[2:]))
        return tensor.flatten(1)

    def uncells(self, table: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the weight of a shape whose cells are given."""
        if self.pattern == "nm":
            return table.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()
        if self.pattern == "block":
            rows, columns = self._block
            split = table.reshape(shape[0] // rows, shape[1] // columns, rows, columns, prod(shape[2:]))
            return split.permute(0, 2, 1, 3, 4).reshape(*shape)
        return table.reshape(*shape)

    @property
    def _block(self) -> tuple[int, int]:
        assert self.rows is not None
        assert self.columns is not None
        return self.rows, self.columns


UNSTRUCTURED = Structure()


def keeps(mask: Mapping[str, Tensor], structure: Structure, units: Sequence[UnitGroup] = ()) -> str | None:
    """Return None where a mask has a pattern, else its first violation as a sentence.

    `mask` maps names to bool tensors, True where a weight is alive; `units` are those of the network (`removable_units`),
    which only the pattern `units` reads.
    """
    if structure.pattern == "units":
        return _keeps_units(mask, units)
    for name, alive in mask.items():
        if not structure.fits(alive.shape):
            continue
        counts = structure.cells(alive).sum(1)
        if structure.pattern == "nm":
            expected, what = torch.full_like(counts, structure._n), f"{structure.m} consecutive inputs"
        elif structure.pattern == "fan_in":
            expected, what = counts[:1].expand_as(counts), "output"
        else:
            expected, what = torch.where(counts > 0, structure.cells(alive).shape[1], 0), "block"
        wrong = (counts != expected).nonzero()
        if len(wrong):
            place = int(wrong[0])
            found, right = int(counts[place]), int(expected[place])
            share = f" of {structure.cells(alive).shape[1]}" if structure.pattern != "fan_in" else ""
            return f"{name}: {what} number {place} keeps {found}{share} weights, {structure} requires {right}"
    return None


def _keeps_units(mask: Mapping[str, Tensor], units: Sequence[UnitGroup]) -> str | None:
    expected = units_mask(mask, units, {group.name: is_out(mask, group) for group in units})
    for name, alive in mask.items():
        wrong = (alive != expected[name]).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            return (
                f"{name}: the weight at {place} is {'alive' if alive[place] else 'pruned'}, {UNITS} requires the "
                f"opposite: those of a unit are pruned together, and no others"
            )
    return None


UNITS = Structure("units")


def shuffle_structured(mask: Mapping[str, Tensor], structure: Structure, seed: int) -> Mask:
    """Shuffle a mask inside each tensor as far as its pattern allows: the `random` control of a structured study.

    Under N:M and constant fan-in the entries of each cell are shuffled, under blocks whole blocks; layers without the pattern
    as `shuffle_mask` does. Raises ValueError for whole units, which a random permutation moves.
    """
    if structure.pattern == "units":
        raise ValueError("whole units are shuffled by a random permutation")
    shuffled = {}
    for name, alive in mask.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "shuffle", name))
        table = structure.cells(alive) if structure.fits(alive.shape) else alive.reshape(1, -1)
        if structure.pattern == "block" and structure.fits(alive.shape):
            table = table[torch.randperm(len(table), generator=generator).to(table.device)]
        else:
            order = torch.rand(table.shape, generator=generator, dtype=torch.float64).argsort(dim=1, stable=True)
            table = table.gather(1, order.to(table.device))
        whole = structure.uncells(table, alive.shape) if structure.fits(alive.shape) else table
        shuffled[name] = whole.reshape(alive.shape)
    return shuffled
