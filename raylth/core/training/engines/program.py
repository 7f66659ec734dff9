"""Which engine trains which program.

| engine | the members | a step |
| --- | --- | --- |
| `eager` | one network, or a `Pack` of stacked ones | kernel by kernel |
| `graph` | each a network of its own, any network | one CUDA graph, the members as branches on several streams |
| `compiled` | the same | the same, each member's step compiled by torch |
| `stacked` | stacked in waves, with convolutions of our own (Triton) | one CUDA graph, the waves as branches |

On a device without CUDA graphs the last three call the same functions on the same static buffers at every step.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from raylth.core.modes import draws_numbers
from raylth.core.training.data_parallel import ALONE, Team
from raylth.core.training.dynamic import DynamicSteps, MaskUpdates
from raylth.core.training.engines.captured import STREAMS, CapturedSteps, StepMaker
from raylth.core.training.packing import NotPackable, Program
from raylth.core.training.recipe import Recipe
from raylth.core.training.step import LeanStep, Masks, Steps

__all__ = ["ENGINES", "EngineName", "Members", "make_program", "make_steps"]

EngineName = Literal["eager", "graph", "compiled", "stacked"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
WAVE = 8  # networks that one program of stacked convolutions holds


class Members(Program):
    """Several programs side by side, whose training steps run as one: the engines but `eager`.

    Raises NotPackable for several networks that draw random numbers in training: a captured step has one stream of them.
    """

    def __init__(self, networks: Sequence[nn.Module], engine: EngineName, wave: int = WAVE, streams: int = STREAMS) -> None:
        if len(networks) > 1 and draws_numbers(networks[0]):
            raise NotPackable("dropout or another layer that draws random numbers")
        self.networks, self.size, self.engine = list(networks), len(networks), engine
        self.parts, self.streams = _parts(self.networks, engine, wave), streams
        self.network = nn.ModuleList([part.network for part in self.parts])
        self.runs = self.network

    def __call__(self, x: Tensor, count: int) -> Tensor:
        """Map inputs (K * count, *in_shape), member after member, to logits (K, count, classes)."""
        sizes = [part.size * count for part in self.parts]
        return torch.cat([part(own, count) for part, own in zip(self.parts, x.split(sizes), strict=True)])

    def use_channels_last(self) -> None:
        """Lay the weights of convolutions out with channels last."""
        for part in self.parts:
            part.use_channels_last()

    def labels(self, y: Tensor) -> Tensor:
        """Return labels, which come member after member, as (K, B)."""
        return y.view(self.size, -1)

    def spread(self, x: Tensor) -> Tensor:
        """Give every member the same inputs (B, *in_shape)."""
        return torch.cat([x] * self.size)

    def member(self, number: int) -> dict[str, Tensor]:
        """Return one member's tensors by name, as they are now and will become."""
        for part in self.parts:
            if number < part.size:
                return part.member(number)
            number -= part.size
        raise IndexError(number)

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:  # type: ignore[override]
        """Set every member's tensors."""
        first = 0
        for part in self.parts:
            part.load(states[first : first + part.size])
            first += part.size

    def write_back(self) -> None:
        """Give the networks the values that their members have."""
        for part in self.parts:
            part.write_back()

    def evaluated(self) -> list[Program]:
        """Return every network as a program of its own: it is evaluated as it would be alone."""
        self.write_back()
        return [Program([network]) for network in self.networks]


def make_program(
    networks: Sequence[nn.Module], engine: EngineName = "eager", *, wave: int = WAVE, streams: int = STREAMS
) -> Program:
    """Return networks of one architecture as a program for an engine; NotPackable where it cannot take them.

    `wave` is how many networks the engine `stacked` stacks, `streams` on how many streams a graph's branches run.
    """
    return Program(networks) if engine == "eager" else Members(networks, engine, wave, streams)


def make_steps(
    program: Program,
    recipe: Recipe,
    masks: Masks,
    device: torch.device,
    team: Team = ALONE,
    updates: Sequence[MaskUpdates] | None = None,
) -> Steps:
    """Return what takes the training steps of a program.

    Raises ValueError for a team, and for masks that change, with another engine than `eager`.
    """
    if updates is not None:
        if isinstance(program, Members):
            raise ValueError(f"networks whose masks change are trained with the engine 'eager', not {program.engine!r}")
        return DynamicSteps(program, recipe, [dict(mask or {}) for mask in masks], device, updates, team)
    if not isinstance(program, Members):
        return Steps(program, recipe, masks, device, team)
    if team.size > 1:
        raise ValueError(f"several processes train a network with the engine 'eager', not {program.engine!r}")
    return CapturedSteps(program.parts, recipe, masks, device, _step_maker(program.engine), program.streams)


def _parts(networks: list[nn.Module], engine: EngineName, wave: int) -> list[Program]:
    if engine != "stacked":
        return [Program([network]) for network in networks]
    from raylth.core.training.engines.stacked import Stacked

    return [Stacked(networks[first : first + wave]) for first in range(0, len(networks), wave)]


def _step_maker(engine: str) -> StepMaker:
    if engine == "compiled":
        from raylth.core.training.engines.compiled import CompiledStep

        return CompiledStep
    return LeanStep
