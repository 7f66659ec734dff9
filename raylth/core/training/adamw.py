"""AdamW (Loshchilov and Hutter, 2019) on all members of a program."""

import math

import torch
from torch import Tensor

from raylth.core.training.optimizer import Masks, Moved, Optimizer
from raylth.core.training.packing import Program

__all__ = ["AdamW"]

STEP = "step:"  # no parameter's name has a colon


class AdamW(Optimizer):
    """The update of `torch.optim.AdamW`: weight decay apart from the gradient's moments.

    Its state is the moments "mean:NAME" and "square:NAME" of each parameter, and the number of steps.
    """

    def __init__(self, program: Program, betas: tuple[float, float], eps: float, weight_decay: float, masks: Masks) -> None:
        super().__init__(program, masks)
        (self.beta1, self.beta2), self.eps, self.decay = betas, eps, weight_decay
        self.means, self.squares = self._zeros(), self._zeros()
        device = next((p.device for p in self.parameters.values()), torch.device("cpu"))
        count = {STEP: torch.zeros((), device=device)}  # float32, as the fused kernel reads it
        self.count = program.of_members([count] * program.size)[STEP]
        self.buffers = {f"mean:{name}": mean for name, mean in self.means.items()}
        self.buffers |= {f"square:{name}": square for name, square in self.squares.items()} | {STEP: self.count}

    def begin(self) -> None:
        """Count the step."""
        self.count.add_(1)

    def move(self, moved: Moved, rate: float | Tensor) -> None:
        """Move parameters by the fused kernel."""
        means, squares = self._moments(moved)
        torch._fused_adamw_(
            moved.parameters, moved.gradients, means, squares, [], [self.count.view(-1)[0]] * len(means), lr=rate,
            beta1=self.beta1, beta2=self.beta2, weight_decay=self.decay, eps=self.eps, amsgrad=False, maximize=False,
        )  # fmt: skip

    def move_plainly(self, moved: Moved, rate: float) -> None:
        """Move parameters by kernels that treat all elements alike."""
        (means, squares), count = self._moments(moved), int(self.count.view(-1)[0])
        torch._foreach_mul_(moved.parameters, 1 - rate * self.decay)
        torch._foreach_lerp_(means, moved.gradients, 1 - self.beta1)
        torch._foreach_mul_(squares, self.beta2)
        torch._foreach_addcmul_(squares, moved.gradients, moved.gradients, 1 - self.beta2)
        scales = torch._foreach_sqrt(squares)
        torch._foreach_div_(scales, math.sqrt(1 - self.beta2**count))
        torch._foreach_add_(scales, self.eps)
        torch._foreach_addcdiv_(moved.parameters, means, scales, -rate / (1 - self.beta1**count))

    def state_of(self, name: str) -> list[Tensor]:
        """Return the moments of a parameter's gradient."""
        return [self.means[name], self.squares[name]]

    def _moments(self, moved: Moved) -> tuple[list[Tensor], list[Tensor]]:
        return [self.means[name] for name in moved.names], [self.squares[name] for name in moved.names]
