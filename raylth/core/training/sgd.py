"""SGD with momentum and weight decay on all members of a program, under masks that hold."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raylth.core.training.packing import Program

__all__ = ["SGD"]

Masks = Sequence[Mapping[str, Tensor] | None]  # of the members


class SGD:
    """The update of `torch.optim.SGD` (its fused kernel), and pruned weights that are exactly 0 after each.

    A network has the same bits alone and as a member of a pack: the fused kernel rounds the last elements of a tensor, those
    that fill no vector register, in another way, so a tensor that ends between two registers takes torch's plain kernels. On
    a GPU the fused kernel treats all elements alike.
    `torch.optim.SGD` itself is not used: making one imports torch's compiler (1.4 s), and its bookkeeping takes a tenth of
    a small network's step.
    """

    LANES = 16  # float32 of the widest registers

    def __init__(self, program: Program, momentum: float, weight_decay: float, masks: Masks) -> None:
        self.decay, self.factor = weight_decay, momentum
        self.parameters = dict(program.network.named_parameters())
        self.buffers = {name: torch.zeros_like(p).detach() for name, p in self.parameters.items()} if momentum else {}
        device = next((p.device for p in self.parameters.values()), torch.device("cpu"))
        self.rate = torch.zeros((), device=device) if device.type == "cuda" else None  # a GPU's kernels read it when they run
        is_even = {
            name: self.rate is not None or p.numel() // program.size % self.LANES == 0 for name, p in self.parameters.items()
        }
        self.even = [name for name, even in is_even.items() if even]
        self.odd = [name for name, even in is_even.items() if not even]
        self.masked, self.alive = self._prune(program, masks)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        """Move every parameter along its gradient; one without a gradient stays where it is.

        `rate` is the learning rate: a number, or a scalar tensor (float32 on a GPU, where a captured graph reads it anew).
        """
        if self.rate is None:
            rate = float(rate)
        elif not isinstance(rate, Tensor):
            rate = self.rate.fill_(rate)
        parameters, gradients, buffers = self._with_gradients(self.even)
        if parameters:
            torch._fused_sgd_(
                parameters, gradients, buffers, weight_decay=self.decay, momentum=self.factor, lr=rate, dampening=0.0,
                nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip
        parameters, gradients, buffers = self._with_gradients(self.odd)
        if parameters:
            moves = torch._foreach_add(gradients, parameters, alpha=self.decay)
            if buffers:
                torch._foreach_mul_(buffers, self.factor)
                torch._foreach_add_(buffers, moves)
            torch._foreach_add_(parameters, buffers or moves, alpha=-float(rate))
        if self.masked:
            torch._foreach_mul_(self.masked, self.alive)

    def load(self, momentum: Mapping[str, Tensor]) -> None:
        """Set the momentum buffers."""
        for name, buffer in self.buffers.items():
            buffer.copy_(momentum[name])

    def _with_gradients(self, names: Sequence[str]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        found = [(name, p, p.grad) for name in names if (p := self.parameters[name]).grad is not None]
        buffers = [self.buffers[name] for name, _, _ in found] if self.buffers else []
        return [p for _, p, _ in found], [gradient for _, _, gradient in found if gradient is not None], buffers

    @torch.no_grad()
    def _prune(self, program: Program, masks: Masks) -> tuple[list[Tensor], list[Tensor]]:
        """Zero the pruned weights of all members; return the masked parameters and their masks as factors 0 and 1."""
        given = [mask for mask in masks if mask is not None]
        if not given:
            return [], []
        if len(given) < program.size:
            raise ValueError("either all members of a program have a mask, or none")
        unknown = [name for name in given[0] if name not in self.parameters]
        if unknown:
            raise ValueError(f"the mask names {unknown[0]!r}, which is not a parameter of the network")
        masked: list[Tensor] = [self.parameters[name] for name in given[0]]
        factors = []
        for alive, parameter in zip(program.of_members(given).values(), masked, strict=True):
            alive = alive.to(parameter.device)
            parameter.copy_(torch.where(alive, parameter, torch.zeros_like(parameter)))
            factors.append(torch.zeros_like(parameter).masked_fill_(alive, 1.0))
        return masked, factors
