"""SGD with momentum and weight decay on all members of a program."""

import torch
from torch import Tensor

from raylth.core.training.optimizer import Masks, Moved, Optimizer
from raylth.core.training.packing import Program

__all__ = ["SGD"]


class SGD(Optimizer):
    """The update of `torch.optim.SGD`. Its state is a momentum buffer for each parameter, under the parameter's name."""

    def __init__(self, program: Program, momentum: float, weight_decay: float, masks: Masks) -> None:
        super().__init__(program, masks)
        self.decay, self.factor = weight_decay, momentum
        self.buffers = self._zeros() if momentum else {}

    def move(self, moved: Moved, rate: float | Tensor) -> None:
        """Move parameters by the fused kernel."""
        torch._fused_sgd_(
            moved.parameters, moved.gradients, self._momentum(moved), weight_decay=self.decay, momentum=self.factor, lr=rate,
            dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip

    def move_plainly(self, moved: Moved, rate: float) -> None:
        """Move parameters by kernels that treat all elements alike."""
        moves, buffers = torch._foreach_add(moved.gradients, moved.parameters, alpha=self.decay), self._momentum(moved)
        if buffers:
            torch._foreach_mul_(buffers, self.factor)
            torch._foreach_add_(buffers, moves)
        torch._foreach_add_(moved.parameters, buffers or moves, alpha=-rate)

    def state_of(self, name: str) -> list[Tensor]:
        """Return a parameter's momentum buffer, where there is momentum."""
        return [self.buffers[name]] if self.buffers else []

    def _momentum(self, moved: Moved) -> list[Tensor]:
        return [self.buffers[name] for name in moved.names] if self.buffers else []
