"""One training step of a program: forward pass, loss, gradients, update."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylth.core.training.adamw import AdamW
from raylth.core.training.data_parallel import ALONE, Team
from raylth.core.training.optimizer import Masks, Optimizer
from raylth.core.training.packing import Program
from raylth.core.training.recipe import Recipe
from raylth.core.training.sgd import SGD

__all__ = ["LeanStep", "Masks", "Step", "Steps"]

FEW_CLASSES = 10  # losses and gradients keep their bits; 100 take a CPU half as long side by side
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # modules whose weights and biases autocast casts


class Step:
    """A training step of one program; holds the optimizer.

    Called with inputs and labels of all members, a learning rate and the number of samples that a member's whole batch has (a
    team's process sees a part of it), it updates the parameters and returns each member's mean loss (K,), in nats.
    """

    def __init__(self, program: Program, recipe: Recipe, masks: Masks, device: torch.device, team: Team = ALONE) -> None:
        self.program, self.recipe, self.team = program, recipe, team
        self.optimizer = _optimizer(program, recipe, masks)
        self.is_half, self.kind = recipe.precision == "bf16", device.type

    def __call__(self, x: Tensor, y: Tensor, rate: float | Tensor, count: int) -> Tensor:
        """Take the step."""
        losses = self.differentiate(x, y, count)
        self.optimizer.step(rate)
        return losses

    def differentiate(self, x: Tensor, y: Tensor, count: int) -> Tensor:
        """Leave the gradients in the parameters, which stay where they are; returns each member's mean loss (K,)."""
        loss = self._losses(x, y)  # (K, B)
        losses = loss.mean(1) if self.team.size == 1 else loss.sum(1) / count
        self.optimizer.zero_grad()
        self._differentiate(self.team.scaled(losses.sum()))
        return losses.detach()

    def _losses(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(self.kind, dtype=torch.bfloat16) if self.is_half else nullcontext():
            logits = self._forward(x, len(y) // self.program.size).float()  # (K, B, classes)
        return cross_entropies(logits, self.program.labels(y), self.recipe.label_smoothing)

    def _forward(self, x: Tensor, count: int) -> Tensor:
        return self.program(x, count)

    def _differentiate(self, total: Tensor) -> None:
        """Leave the gradients in the parameters."""
        total.backward()


class LeanStep(Step):
    """The same step with fewer kernels: on a GPU a small network's step is bound by how many there are.

    Batch norms' counters are raised by one kernel, not one each. In bf16 the weights of products are cast by one kernel, and
    their gradients by one, which is the arithmetic of autocast. Gradients come by `torch.autograd.grad`, which runs on the
    stream that the step runs on.
    """

    def __init__(self, program: Program, recipe: Recipe, masks: Masks, device: torch.device) -> None:
        super().__init__(program, recipe, masks, device)
        self.norms = [module for module in program.network.modules() if _counts_batches(module)]
        self.counters = [norm._buffers["num_batches_tracked"] for norm in self.norms]
        self.halves = _Halves(program) if recipe.precision == "bf16" else None

    def _losses(self, x: Tensor, y: Tensor) -> Tensor:
        with _counters_apart(self.norms):
            loss = super()._losses(x, y)
        if self.counters:
            torch._foreach_add_(self.counters, 1)  # type: ignore[arg-type]
        return loss

    def _forward(self, x: Tensor, count: int) -> Tensor:
        if self.halves is None:
            return self.program(x, count)
        self.halves.cast()
        with self.halves.in_place():
            return self.program(x, count)

    @torch.no_grad()
    def _differentiate(self, total: Tensor) -> None:
        trained = {name: p for name, p in self.optimizer.parameters.items() if p.requires_grad}
        with torch.enable_grad():
            inputs = [self._read(parameter) for parameter in trained.values()]
            found = torch.autograd.grad(total, inputs, allow_unused=True)
        wide, half = list[Tensor](), list[Tensor]()
        for parameter, gradient in zip(trained.values(), found, strict=True):
            if gradient is None or (gradient.dtype == parameter.dtype and gradient.stride() == parameter.stride()):
                parameter.grad = gradient
                continue
            parameter.grad = torch.empty_like(parameter)  # laid out as the parameter, which the fused update relies on
            wide.append(parameter.grad)
            half.append(gradient)
        if wide:
            torch._foreach_copy_(wide, half)

    def _read(self, parameter: Tensor) -> Tensor:
        """Return what the forward pass reads in a parameter's place."""
        return parameter if self.halves is None else self.halves.of(parameter)


class Steps:
    """The training steps of all members of a program; how they are run is a matter of the subclass.

    This one runs them as they come, kernel by kernel.
    """

    by_member = False  # whether inputs come member after member; else sample after sample, its members side by side

    def __init__(self, program: Program, recipe: Recipe, masks: Masks, device: torch.device, team: Team = ALONE) -> None:
        self.steps = [Step(program, recipe, masks, device, team)]

    def place(self, count: int) -> tuple[Tensor, Tensor] | None:
        """Return where inputs and labels of `count` samples a member are to be laid; None where they may be anywhere."""
        return None

    def __call__(self, x: Tensor, y: Tensor, rate: float, count: int) -> Tensor:
        """Take a step of every member; returns their mean losses (K,)."""
        return self.steps[0](x, y, rate, count)

    def momentum(self) -> list[dict[str, Tensor]]:
        """Return each member's optimizer state by name, as it is now and will become."""
        return [member for step in self.steps for member in step.program.apart(step.optimizer.buffers)]

    def load(self, momentum: Sequence[Mapping[str, Tensor]]) -> None:
        """Set the members' optimizer states."""
        first = 0
        for step in self.steps:
            size = step.program.size
            step.optimizer.load(step.program.of_members(momentum[first : first + size]))
            first += size


def _optimizer(program: Program, recipe: Recipe, masks: Masks) -> Optimizer:
    optimizer: Optimizer
    if recipe.optimizer == "adamw":
        optimizer = AdamW(program, recipe.betas, recipe.eps, recipe.weight_decay, masks)
    else:
        optimizer = SGD(program, recipe.momentum, recipe.weight_decay, masks)
    if recipe.neuron_scaling:
        optimizer.scale_neurons(program, masks)
    return optimizer


def cross_entropies(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy (K, B) of logits (K, B, classes) and labels (K, B), in nats.

    Few classes lie one after another for it: side by side ten of them take a CPU four times as long.
    """
    if logits.shape[2] <= FEW_CLASSES:
        logits.register_hook(Tensor.contiguous)  # a gradient laid out otherwise gives a layer other bits
        by_class = logits.transpose(1, 2).contiguous()
        return F.cross_entropy(by_class, labels, label_smoothing=smoothing, reduction="none")
    flat = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="none")
    return flat.view(labels.shape)


class _Halves:
    """bf16 copies of the parameters that autocast would cast, for one network; none for stacked ones, which cast their own.

    A parameter that is also used elsewhere, as an embedding is, stays to autocast.
    """

    def __init__(self, program: Program) -> None:
        modules = list(program.network.modules()) if program.size == 1 else []
        held = [(module, name, p) for module in modules for name, p in module.named_parameters(recurse=False)]
        elsewhere = {id(p) for module, _, p in held if not isinstance(module, PRODUCTS)}
        cast = [(module, name, p) for module, name, p in held if id(p) not in elsewhere and p.requires_grad]
        self.parameters = {id(p): p for _, _, p in cast}
        self.copies = {key: torch.empty_like(p, dtype=torch.bfloat16).requires_grad_() for key, p in self.parameters.items()}
        self.places = [(module._parameters, name, p, self.copies[id(p)]) for module, name, p in cast]

    def of(self, parameter: Tensor) -> Tensor:
        """Return a parameter's copy; itself where it has none."""
        return self.copies.get(id(parameter), parameter)

    @torch.no_grad()
    def cast(self) -> None:
        """Copy the parameters as they are now."""
        if self.copies:
            torch._foreach_copy_(list(self.copies.values()), list(self.parameters.values()))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the network compute with the copies. (`functional_call` leaves them there where a module has two names.)"""
        try:
            for held, name, _, copy in self.places:
                held[name] = copy  # type: ignore[assignment]  # a module asks only for a tensor
            yield
        finally:
            for held, name, parameter, _ in self.places:
                held[name] = parameter


def _counts_batches(module: nn.Module) -> bool:
    """Whether a batch norm counts its batches and needs the count for nothing."""
    return module._buffers.get("num_batches_tracked") is not None and getattr(module, "momentum", None) is not None


@contextmanager
def _counters_apart(norms: Sequence[nn.Module]) -> Iterator[None]:
    counters = [norm._buffers["num_batches_tracked"] for norm in norms]
    try:
        for norm in norms:
            norm._buffers["num_batches_tracked"] = None
        yield
    finally:
        for norm, counter in zip(norms, counters, strict=True):
            norm._buffers["num_batches_tracked"] = counter
