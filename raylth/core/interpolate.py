"""Networks on the line between two others, or on the plane through three, and the barrier that lies there."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from raylth.core.state import like

__all__ = ["Plane", "average", "barrier", "interpolate", "line", "middle_rise"]

T = TypeVar("T")


def interpolate(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 - alpha) A + alpha B of two state dicts, which loads where they do; integers are B's.

    Raises ValueError when names or shapes differ.
    """
    if list(state_a) != list(state_b):
        odd = sorted(set(state_a) ^ set(state_b)) or list(state_a)
        raise ValueError(f"A and B are of different architectures: {odd[0]!r} is not in both")
    for name, tensor in state_b.items():
        if state_a[name].shape != tensor.shape:
            raise ValueError(f"{name}: A has shape {tuple(state_a[name].shape)}, B {tuple(tensor.shape)}")
    between = {
        name: (1 - alpha) * state_a[name] + alpha * tensor if tensor.is_floating_point() else tensor.clone()
        for name, tensor in state_b.items()
    }
    return like(between, state_b, state_a)


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of several state dicts, which loads where they do; integers are the first's.

    Raises ValueError when names or shapes differ, or there is none.
    """
    if not states:
        raise ValueError("a mean is of one network or more, found none")
    first = states[0]
    for other in states[1:]:
        interpolate(first, other, 0.0)  # it checks names and shapes
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }
    return like(mean, *states)


def line(
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    alphas: Sequence[float],
    measure: Callable[[float, dict[str, Tensor]], T],
) -> list[T]:
    """Return `measure(alpha, state)` of the interpolated network at every alpha in [0, 1], from A (0) to B (1)."""
    with torch.no_grad():
        return [measure(alpha, interpolate(state_a, state_b, alpha)) for alpha in alphas]


class Plane:
    """The plane through three networks, in orthonormal coordinates: A at (0, 0), B at (|B - A|, 0), C above or below.

    Distances and angles are those of `coordinates_of`, the names of the tensors that count (parameters, as a rule); all
    other floating-point tensors go along, integers are A's. ValueError for different architectures, or three on one line.
    """

    def __init__(
        self,
        state_a: Mapping[str, Tensor],
        state_b: Mapping[str, Tensor],
        state_c: Mapping[str, Tensor],
        *,
        coordinates_of: Sequence[str],
    ) -> None:
        interpolate(state_a, state_b, 0.0), interpolate(state_a, state_c, 0.0)  # they check names and shapes
        self.states = [like(state, state) for state in (state_a, state_b, state_c)]
        to_b, to_c = (
            torch.cat([(state[name].double() - state_a[name].double()).flatten() for name in coordinates_of])
            for state in (state_b, state_c)
        )
        length = float(to_b.norm())
        along = float(to_b @ to_c) / length if length else 0.0
        across = float((to_c - to_b * (along / length)).norm()) if length else 0.0
        if across <= 1e-6 * float(to_c.norm()) or not length:
            raise ValueError("the three networks lie on one line, so no plane goes through them alone")
        self.corners = ((0.0, 0.0), (length, 0.0), (along, across))

    def at(self, x: float, y: float) -> dict[str, Tensor]:
        """Return the network at (x, y), which loads where the three do; variances that would be negative are 0."""
        (_, _), (length, _), (along, across) = self.corners
        third = y / across
        second = (x - third * along) / length
        a, b, c = self.states
        state = {
            name: (1 - second - third) * tensor + second * b[name] + third * c[name]
            if tensor.is_floating_point()
            else tensor.clone()
            for name, tensor in a.items()
        }
        state = {name: t.clamp(min=0) if name.endswith("running_var") else t for name, t in state.items()}
        return like(state, a, b, c)

    def ticks(self, axis: int, count: int, margin: float) -> list[float]:
        """Return `count` equally spaced coordinates along x (0) or y (1), beyond the corners by `margin` of their extent."""
        values = [corner[axis] for corner in self.corners]
        low, high = min(values), max(values)
        low, high = low - margin * (high - low), high + margin * (high - low)
        return [low + (high - low) * number / (count - 1) for number in range(count)]


def barrier(values: Sequence[float], alphas: Sequence[float]) -> float:
    """Return how far `values` rise above the chord between their ends: the largest gap, never below 0.

    `values` are losses (nats) or errors (percent) at `alphas`, which run from 0 (A) to 1 (B). Paper, equation 3. As a
    maximum of noisy gaps that is clipped at 0, it is biased upwards; `middle_rise` is not.
    Raises ValueError when the ends are missing or a value is not finite.
    """
    return max(0.0, *_rises(values, alphas))


def middle_rise(values: Sequence[float], alphas: Sequence[float]) -> float | None:
    """Return how far the value half-way is above the chord between the ends, below 0 where it lies under it.

    None where 1/2 is none of the `alphas`. Raises ValueError as `barrier` does.
    """
    rises = _rises(values, alphas)
    return rises[alphas.index(0.5)] if 0.5 in alphas else None


def _rises(values: Sequence[float], alphas: Sequence[float]) -> list[float]:
    if len(values) != len(alphas) or len(values) < 2 or alphas[0] != 0 or alphas[-1] != 1:
        raise ValueError("a barrier needs one value per alpha, and alphas that run from 0 to 1")
    if not torch.tensor(values, dtype=torch.float64).isfinite().all():
        raise ValueError("a barrier needs finite values")
    return [value - (1 - alpha) * values[0] - alpha * values[-1] for value, alpha in zip(values, alphas, strict=True)]
