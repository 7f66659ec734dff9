"""Training steps between which masks change: for finders that find A's mask while A is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raylth.common.seeding import derive_seed
from raylth.core.masks import Mask, as_mask
from raylth.core.pruning.finder import DynamicFinder, UpdateInputs
from raylth.core.training.data_parallel import ALONE, Team
from raylth.core.training.packing import Program
from raylth.core.training.recipe import Recipe
from raylth.core.training.step import Steps

__all__ = ["DynamicSteps", "MaskUpdates"]

TAKEN, MASK = "mask:taken", "mask:"  # in a training's state; no parameter's name has a colon


@dataclass(frozen=True)
class MaskUpdates:
    """How the mask of one training changes."""

    finder: DynamicFinder
    name: str  # of the finder, for messages
    every: int  # steps between two changes
    until: int  # the first step before which none is made any more
    num_alive: int  # entries of the mask that have to be True in the end
    fraction: float
    seed: int

    @property
    def count(self) -> int:
        """How many changes there are."""
        return (self.until - 1) // self.every

    def after(self, taken: int) -> int | None:
        """Return which change, from 1, is made when so many steps were taken; None for no change."""
        number, rest = divmod(taken, self.every)
        return number if rest == 0 and 1 <= number <= self.count else None


class DynamicSteps(Steps):
    """Steps of networks whose masks change, kernel by kernel; `masks` are changed in place and are those of the end then.

    All members change their masks after the same steps. Where a member's weights or gradients are not finite its mask stays
    as it is: its training has diverged. RuntimeError, one line, for what a finder returns that is no mask of the network.
    """

    def __init__(
        self,
        program: Program,
        recipe: Recipe,
        masks: Sequence[Mask],
        device: torch.device,
        updates: Sequence[MaskUpdates],
        team: Team = ALONE,
    ) -> None:
        super().__init__(program, recipe, masks, device, team)
        self.program, self.masks, self.updates, self.taken = program, list(masks), list(updates), 0

    def __call__(self, x: Tensor, y: Tensor, rate: float, count: int) -> Tensor:
        """Take a step of every member; returns their mean losses (K,)."""
        step, first = self.steps[0], self.updates[0]
        self.taken += 1
        number = first.after(self.taken)
        losses = step.differentiate(x, y, count)
        if number is None or not first.finder.replaces_step:
            step.optimizer.step(rate)
        if number is not None:
            self._change([self._updated(member, number) for member in range(self.program.size)])
        return losses

    def momentum(self) -> list[dict[str, Tensor]]:
        """Return each member's optimizer state by name, with its mask and the number of steps taken."""
        taken = torch.tensor(self.taken)
        return [
            {**state, TAKEN: taken, **{MASK + name: alive for name, alive in mask.items()}}
            for state, mask in zip(super().momentum(), self.masks, strict=True)
        ]

    def load(self, momentum: Sequence[Mapping[str, Tensor]]) -> None:
        """Set the members' optimizer states, masks and number of steps."""
        self.taken = int(momentum[0][TAKEN])
        self._change([{name: state[MASK + name] for name in self.masks[0]} for state in momentum])
        own = [{name: tensor for name, tensor in state.items() if not name.startswith(MASK)} for state in momentum]
        super().load(own)  # behind the masks, whose change clears momentum

    def _updated(self, member: int, number: int) -> Mask:
        """Return one member's mask after a change."""
        mask, updates, optimizer = self.masks[member], self.updates[member], self.steps[0].optimizer
        parameters = {name: optimizer.parameters[name].detach() for name in mask}
        weights = self.program.apart(parameters)[member]
        slopes = {name: _gradient(optimizer.parameters[name]) for name in mask}
        gradients = self.program.apart(slopes)[member]
        values = [*weights.values(), *gradients.values()]
        if not all(math.isfinite(float(value.abs().sum())) for value in values):
            return mask
        inputs = UpdateInputs(
            weights=weights,
            gradients=gradients,
            mask={name: alive.clone() for name, alive in mask.items()},
            num_alive=updates.num_alive,
            number=number,
            count=updates.count,
            progress=number * updates.every / updates.until,
            fraction=updates.fraction,
            seed=derive_seed(updates.seed, "update", number),
        )
        return as_mask(updates.finder.update(inputs), mask, f"mask finder {updates.name}")

    def _change(self, masks: Sequence[Mapping[str, Tensor]]) -> None:
        self.steps[0].optimizer.change_masks(self.program, masks)
        for mask, changed in zip(self.masks, masks, strict=True):
            for name, alive in mask.items():
                alive.copy_(changed[name])


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()
