"""A member's training step with its forward pass, loss and gradients compiled by torch."""

import copy
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylth.core.training.packing import Program
from raylth.core.training.recipe import Recipe
from raylth.core.training.step import LeanStep, Masks

__all__ = ["CompiledStep"]

Compiled = Callable[[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor], Tensor]
COMPILED: dict[Any, Compiled] = {}  # of this process: networks of one architecture share what was compiled


class CompiledStep(LeanStep):
    """A step of one network whose losses are compiled, once for all members of an architecture and size of batch.

    The compiler's files lie in torch's own cache folder, which all workers of a machine share.
    """

    def __init__(self, program: Program, recipe: Recipe, masks: Masks, device: torch.device) -> None:
        super().__init__(program, recipe, masks, device)
        self.recipe, self.device = recipe, device

    def _losses(self, x: Tensor, y: Tensor) -> Tensor:
        network = self.program.network
        parameters = {name: self._read(parameter) for name, parameter in network.named_parameters()}
        buffers = {name: b for name, b in network.named_buffers() if all(b is not counter for counter in self.counters)}
        if self.halves is not None:
            self.halves.cast()
        loss = _compiled(network, self.recipe, self.device, x.shape)(parameters, buffers, x, y)
        if self.counters:
            torch._foreach_add_(self.counters, 1)  # type: ignore[arg-type]
        return loss


def _compiled(network: nn.Module, recipe: Recipe, device: torch.device, shape: torch.Size) -> Compiled:
    """Return what computes the losses of networks like one, for batches of one shape."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in network.state_dict().items())
    key = (type(network), repr(network), shapes, recipe.precision, recipe.label_smoothing, device, shape)
    if key not in COMPILED:
        COMPILED[key] = _compile(copy.deepcopy(network), recipe, device)
    return COMPILED[key]


def _compile(template: nn.Module, recipe: Recipe, device: torch.device) -> Compiled:
    for module in template.modules():  # counted outside
        if module._buffers.get("num_batches_tracked") is not None and getattr(module, "momentum", None) is not None:
            module._buffers["num_batches_tracked"] = None
    template.train()
    smoothing, is_half = recipe.label_smoothing, recipe.precision == "bf16"

    def losses(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half):
            logits = torch.func.functional_call(template, {**parameters, **buffers}, (x,))
        return F.cross_entropy(logits.float(), y, label_smoothing=smoothing, reduction="none")[None]

    # Torch counts recompilations by code object; a copy of it has its own count.
    own = FunctionType(losses.__code__.replace(), globals(), losses.__name__, None, losses.__closure__)
    import torch._inductor.config as settings

    # Kernels that are chosen by timing round otherwise in another process.
    options: dict[str, Any] | None = {"deterministic": True} if hasattr(settings, "deterministic") else None
    found: Compiled = torch.compile(own, fullgraph=True, dynamic=False, options=options)
    return found
