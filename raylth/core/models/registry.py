"""The registry of networks, in a file of its own so that networks can file themselves without a cycle."""

from collections.abc import Callable

from torch import nn

from raylth.registry import Registry

__all__ = ["MODELS", "channels"]

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")


def channels(base: int, width: float) -> int:
    """Return `base * width` as a whole number of channels, at least 1; ValueError when it is not whole to 1e-6."""
    scaled = base * width
    if abs(scaled - round(scaled)) > 1e-6 or round(scaled) < 1:
        raise ValueError(f"width {width} gives {scaled:g} channels where {base} are scaled; it must give whole numbers")
    return round(scaled)
