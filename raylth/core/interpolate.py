"""Networks on the line between two others, and the barrier that lies there."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["barrier", "interpolate", "line"]


def interpolate(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 - alpha) A + alpha B of two state dicts; integers are B's. ValueError when names or shapes differ."""
    if list(state_a) != list(state_b):
        odd = sorted(set(state_a) ^ set(state_b)) or list(state_a)
        raise ValueError(f"A and B are of different architectures: {odd[0]!r} is not in both")
    for name, tensor in state_b.items():
        if state_a[name].shape != tensor.shape:
            raise ValueError(f"{name}: A has shape {tuple(state_a[name].shape)}, B {tuple(tensor.shape)}")
    return {
        name: (1 - alpha) * state_a[name] + alpha * tensor if tensor.is_floating_point() else tensor.clone()
        for name, tensor in state_b.items()
    }


def line(
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    alphas: Sequence[float],
    measure: Callable[[float, dict[str, Tensor]], float],
) -> list[float]:
    """Return `measure(alpha, state)` of the interpolated network at every alpha in [0, 1], from A (0) to B (1)."""
    with torch.no_grad():
        return [measure(alpha, interpolate(state_a, state_b, alpha)) for alpha in alphas]


def barrier(values: Sequence[float], alphas: Sequence[float]) -> float:
    """Return how far `values` rise above the chord between their ends: the largest gap, never below 0.

    `values` are losses (nats) or errors (percent) at `alphas`, which run from 0 (A) to 1 (B). Paper, equation 3.
    Raises ValueError when the ends are missing or a value is not finite.
    """
    if len(values) != len(alphas) or len(values) < 2 or alphas[0] != 0 or alphas[-1] != 1:
        raise ValueError("a barrier needs one value per alpha, and alphas that run from 0 to 1")
    if not torch.tensor(values, dtype=torch.float64).isfinite().all():
        raise ValueError("a barrier needs finite values")
    chord = [(1 - alpha) * values[0] + alpha * values[-1] for alpha in alphas]
    return max(0.0, *(value - straight for value, straight in zip(values, chord, strict=True)))
