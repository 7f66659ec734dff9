"""What updates of all members of a program have in common: which parameters they move, their state, masks that hold."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raylth.core.training.packing import Program

__all__ = ["Masks", "Moved", "Optimizer", "neuron_factors"]

Masks = Sequence[Mapping[str, Tensor] | None]  # of the members


class Moved(NamedTuple):
    """Parameters that have a gradient, by name, and their gradients."""

    names: list[str]
    parameters: list[Tensor]
    gradients: list[Tensor]


class Optimizer(ABC):
    """An update of torch's by its fused kernel, and pruned weights that are exactly 0 after each step.

    A network has the same bits alone and as a member of a pack: fused kernels round the last elements of a tensor, those
    that fill no vector register, in another way, so a tensor that ends between two registers takes torch's plain kernels. On
    a GPU a fused kernel treats all elements alike.
    Torch's own optimizers are not used: making one imports torch's compiler (1.4 s), and its bookkeeping takes a tenth of a
    small network's step.
    """

    LANES = 16  # float32 of the widest registers

    buffers: dict[str, Tensor]  # the state, in the shapes of the program's own parameters

    def __init__(self, program: Program, masks: Masks) -> None:
        self.parameters = dict(program.network.named_parameters())
        device = next((p.device for p in self.parameters.values()), torch.device("cpu"))
        self.rate = torch.zeros((), device=device) if device.type == "cuda" else None  # a GPU's kernels read it when they run
        is_even = {
            name: self.rate is not None or p.numel() // program.size % self.LANES == 0 for name, p in self.parameters.items()
        }
        self.even = [name for name, even in is_even.items() if even]
        self.odd = [name for name, even in is_even.items() if not even]
        self.masked_names = [name for mask in masks[:1] if mask is not None for name in mask]
        self.masked, self.alive = self._prune(program, masks)
        self.scaled: list[tuple[Tensor, Tensor]] = []  # parameters and the factors of their gradients (`scale_neurons`)

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
        self._scale_gradients()
        self.begin()
        if (moved := self._with_gradients(self.even)).names:
            self.move(moved, rate)
        if (moved := self._with_gradients(self.odd)).names:
            self.move_plainly(moved, float(rate))
        if self.masked:
            torch._foreach_mul_(self.masked, self.alive)

    @torch.no_grad()
    def change_masks(self, program: Program, masks: Sequence[Mapping[str, Tensor]]) -> None:
        """Have other masks from now on, of the same weights: those that grow start at 0, with a state of 0."""
        changed = program.of_members(masks)
        for name, parameter, factor in zip(self.masked_names, self.masked, self.alive, strict=True):
            alive = changed[name].to(parameter.device)
            grown = alive & (factor == 0)
            factor.copy_(alive)
            parameter.copy_(torch.where(alive, parameter, torch.zeros_like(parameter)))
            for buffer in self.state_of(name):
                buffer.masked_fill_(grown, 0.0)

    @abstractmethod
    def state_of(self, name: str) -> list[Tensor]:
        """Return what is kept of one parameter, in its shape."""

    @torch.no_grad()
    def scale_neurons(self, program: Program, masks: Masks) -> None:
        """Have each step multiply the gradients of masked parameters by their members' `neuron_factors`.

        The factors are static tensors, laid out as the parameters. A layer whose factors are all 1 is left alone, so that its
        bits are those of an optimizer without them.
        """
        given = [{name: neuron_factors(alive) for name, alive in mask.items()} for mask in masks if mask is not None]
        self.scaled = []
        for name, factors in program.of_members(given).items() if given else ():
            if not bool((factors == 1).all()):
                parameter = self.parameters[name]
                self.scaled.append((parameter, torch.empty_like(parameter).copy_(factors)))

    def begin(self) -> None:  # noqa: B027  # most have nothing to do
        """Prepare a step."""

    @abstractmethod
    def move(self, moved: Moved, rate: float | Tensor) -> None:
        """Move parameters by the fused kernel."""

    @abstractmethod
    def move_plainly(self, moved: Moved, rate: float) -> None:
        """Move parameters by kernels that treat all elements alike."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set the state's buffers."""
        for name, buffer in self.buffers.items():
            buffer.copy_(state[name])

    def _scale_gradients(self) -> None:
        scaled = [(p, p.grad, factors) for p, factors in self.scaled if p.grad is not None]
        if not scaled:
            return
        gradients = torch._foreach_mul([gradient for _, gradient, _ in scaled], [factors for _, _, factors in scaled])
        for (parameter, _, _), gradient in zip(scaled, gradients, strict=True):
            parameter.grad = gradient  # not in place: two parameters that are added up may have one gradient

    def _with_gradients(self, names: Sequence[str]) -> Moved:
        found = [(name, p, p.grad) for name in names if (p := self.parameters[name]).grad is not None]
        return Moved(
            [name for name, _, _ in found],
            [p for _, p, _ in found],
            [gradient for _, _, gradient in found if gradient is not None],
        )

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p).detach() for name, p in self.parameters.items()}

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


def neuron_factors(alive: Tensor) -> Tensor:
    """Return what SparseOpt multiplies the gradients of each neuron's incoming weights by: sqrt(1 - s_i) / sqrt(1 - s_mean).

    `alive` is a layer's mask (neurons, ...), True where a weight is alive; s_i is the pruned share of neuron i, s_mean the
    mean of s_i over the neurons of the layer. The factors are float32, (neurons, 1, ...), to be broadcast; the mean of their
    squares is 1. A neuron without weights has the factor 0; where no neuron has any, all factors are 1. Source: Adnan et al.,
    SparseOpt: Addressing Normalization-induced Gradient Skew in Sparse Training, ICML 2026, arXiv 2605.27541.
    """
    counts = alive.flatten(1).sum(1, dtype=torch.float64)  # of alive weights: (1 - s_i) x weights of a neuron
    total = counts.sum()
    ratios = torch.where(total > 0, counts * len(counts) / total.clamp(min=1), torch.ones_like(counts))  # exactly 1 if equal
    return ratios.sqrt().to(torch.float32).view(-1, *(1,) * (alive.ndim - 1))
