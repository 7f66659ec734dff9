"""Layers some of whose weights are fixed by the architecture, so that a network has no permutation symmetry.

The W-asymmetric networks of Lim et al. (2024), arXiv 2405.20231: every output of a layer has its own set of fixed incoming
weights. Units whose fixed weights differ cannot be exchanged.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylth.common.seeding import derive_seed

__all__ = [
    "FIXED_SHARE", "KAPPA", "FixedConv2d", "FixedEntries", "FixedLayer", "FixedLinear", "fix_entries", "fixed_of",
    "has_fixed_entries",
]  # fmt: skip

FIXED_SHARE = 1 / 8  # of each row: 64 of 512 in the hidden layers of the authors' MLP
KAPPA = 39.0  # the authors' deviation 1 of fixed entries over that of their MLP's free ones at first, 1 / sqrt(3 * 512)


class FixedEntries(nn.Module):
    """Which entries of a weight are fixed, and at which values: `fixed(weight)` is what the layer computes with.

    `places` (bool) and `values` have the weight's shape. They belong to the architecture: no state dict holds them. Several
    weights of that shape, stacked in front, are done as one.
    """

    places: Tensor
    values: Tensor

    def __init__(self, places: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("values", values, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the fixed values in their places; no gradient reaches the weight there."""
        return torch.where(self.places, self.values, weight)


class FixedLinear(nn.Linear):
    """A linear layer with fixed entries; its `weight` is 0 there, and stays so."""

    fixed: FixedEntries

    def __init__(self, like: nn.Linear, fixed: FixedEntries) -> None:
        super().__init__(like.in_features, like.out_features, like.bias is not None, device="meta")
        _take_over(self, like, fixed)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(x, self.fixed(self.weight), self.bias)

    def reset_parameters(self) -> None:
        """Draw the free entries by torch's default."""
        if "fixed" in self._modules:  # not while the layer is made: it takes the other's tensors over
            super().reset_parameters()
            _clear(self)


class FixedConv2d(nn.Conv2d):
    """A convolution with fixed entries; its `weight` is 0 there, and stays so."""

    fixed: FixedEntries

    def __init__(self, like: nn.Conv2d, fixed: FixedEntries) -> None:
        geometry: dict[str, Any] = {
            name: getattr(like, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")
        }
        size: Any = like.kernel_size
        super().__init__(like.in_channels, like.out_channels, size, bias=like.bias is not None, device="meta", **geometry)
        _take_over(self, like, fixed)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        return self._conv_forward(input, self.fixed(self.weight), self.bias)

    def reset_parameters(self) -> None:
        """Draw the free entries by torch's default."""
        if "fixed" in self._modules:  # not while the layer is made: it takes the other's tensors over
            super().reset_parameters()
            _clear(self)


FixedLayer = FixedLinear | FixedConv2d


def fixed_of(layer: nn.Module) -> FixedEntries | None:
    """Return a layer's fixed entries; None for one without."""
    return layer.fixed if isinstance(layer, FixedLayer) else None


def has_fixed_entries(model: nn.Module) -> bool:
    """Whether a network has layers with fixed entries."""
    return any(isinstance(module, FixedEntries) for module in model.modules())


@torch.no_grad()
def fix_entries(model: nn.Module, *, share: float = FIXED_SHARE, kappa: float = KAPPA) -> None:
    """Give every linear layer and convolution of `model` fixed entries, in place, and draw its free ones anew in scale.

    In each row, the incoming weights of one output, a `share` of the n entries is fixed, rounded, at least 1 and at least so
    many that all rows of the layer can have different sets, which they do. Their values are drawn from N(0, (kappa s)^2), the
    free entries scaled from He's deviation sqrt(2 / n) to s, such that the row has the variance 2 that He et al. (2015) give
    it: s^2 = 2 / (kappa^2 k + n - k) for k fixed entries. Places and values depend on the layers' names and shapes only, not
    on torch's random state: they are equal in all networks of an architecture. Lim et al. (2024), section 3.1.
    Raises ValueError for a share or kappa that cannot be, and for a layer whose rows cannot all have different sets.
    """
    if not 0 < share < 1:
        raise ValueError(f"fixed must be a share above 0 and below 1, not {share!r}")
    if not 0 < kappa < math.inf:
        raise ValueError(f"kappa must be a finite number above 0, not {kappa!r}")
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        rows, inputs = module.weight.shape[0], module.weight[0].numel()
        count = _count(name, rows, inputs, share)
        spread = math.sqrt(2 / (kappa**2 * count + inputs - count))  # s
        fixed = _draw(name, tuple(module.weight.shape), count, kappa * spread, module.weight)
        module.weight.mul_(spread * math.sqrt(inputs / 2))
        model.set_submodule(name, FixedLinear(module, fixed) if isinstance(module, nn.Linear) else FixedConv2d(module, fixed))


def _take_over(layer: FixedLayer, like: nn.Linear | nn.Conv2d, fixed: FixedEntries) -> None:
    layer.weight, layer.bias, layer.fixed = like.weight, like.bias, fixed
    layer.train(like.training)
    _clear(layer)


@torch.no_grad()
def _clear(layer: FixedLayer) -> None:
    """Set the weight to 0 where its values are not read."""
    layer.weight.masked_fill_(layer.fixed.places, 0.0)


def _count(name: str, rows: int, inputs: int, share: float) -> int:
    """Return how many entries of each row are fixed."""
    count = max(1, round(share * inputs))
    while 2 * count < inputs and math.comb(inputs, count) < rows:
        count += 1
    if count >= inputs or math.comb(inputs, count) < rows:
        raise ValueError(f"{name}: no {rows} different sets of {count} of {inputs} inputs: the network is too narrow for it")
    return count


def _draw(name: str, shape: tuple[int, ...], count: int, deviation: float, like: Tensor) -> FixedEntries:
    """Draw the places, another set for each row, and the values of one layer."""
    if like.is_meta:  # of a network without values
        return FixedEntries(torch.empty_like(like, dtype=torch.bool), torch.empty_like(like))
    rows, inputs = shape[0], math.prod(shape[1:])
    # NumPy's old generator, whose streams never change: no file holds what is drawn here.
    draws = np.random.RandomState(derive_seed(0, "fixed entries", name) % 2**32)
    places, taken = np.zeros((rows, inputs), dtype=bool), set[bytes]()
    while len(taken) < rows:
        row = np.zeros(inputs, dtype=bool)
        row[draws.permutation(inputs)[:count]] = True
        places[len(taken)] = row  # which stays only if no row before has the same
        taken.add(row.tobytes())
    values = torch.from_numpy(deviation * draws.standard_normal((rows, inputs)))
    return FixedEntries(torch.from_numpy(places).view(shape).to(like.device), values.view(shape).to(like.device, like.dtype))
