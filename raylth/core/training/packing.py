"""Several networks of one architecture as one program: stacked weights, one grouped operation where there were many.

A layer of K members is one operation: a batched product for linear layers, a grouped convolution, one batch norm over K
times the channels. Activations between them are (B, K * C, ...), the members' channels one after another, so that what works
channel by channel (activation functions, pools, sums) needs no change. Members never mix: one that diverges leaves the rest
alone.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.fixed_entries import fixed_of
from raylth.core.graph import text_of, trace
from raylth.core.precision import cast_like_autocast
from raylth.core.state import load_tensors
from raylth.core.tensors import check_tensors

__all__ = ["NotPackable", "Pack", "Program"]

BY_CHANNEL_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Hardswish, nn.Hardsigmoid, nn.ReLU6, nn.Identity,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
BY_CHANNEL: set[Any] = {
    torch.relu, torch.relu_, F.relu, F.gelu, F.silu, torch.tanh, torch.sigmoid, torch.add, torch.mul, F.max_pool2d,
    F.avg_pool2d, F.adaptive_avg_pool2d, "relu", "relu_", "add", "add_", "contiguous",
}  # fmt: skip
RELU: set[Any] = {torch.relu, torch.relu_, F.relu, "relu", "relu_"}
BY_CHANNEL_NAMES = {"add", "iadd", "mul", "imul"}  # of module operator


class NotPackable(ValueError):
    """A network with an operation that cannot be done for several members at once; the text names it."""


class Program:
    """One network, or several that run as one: what the training loop and the evaluation see of them.

    `network` holds the parameters: the one network itself, or a `Pack`. `runs` is what maps inputs to logits: the same, or a
    wrapper around it. `engine` names how its training steps are run.
    """

    engine = "eager"

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = list(networks)
        self.size = len(networks)
        self.network = networks[0] if self.size == 1 else Pack(networks)
        self.runs: nn.Module = self.network

    def __call__(self, x: Tensor, count: int) -> Tensor:
        """Map inputs (count * K, *in_shape), each sample's K members side by side, to logits (K, count, classes)."""
        if self.size == 1:
            logits: Tensor = self.runs(x)
            return logits[None]
        together: Tensor = self.runs(x.unflatten(0, (count, self.size)))
        return together

    def use_channels_last(self) -> None:
        """Lay the weights of convolutions out with channels last; a pack's are."""
        if self.size == 1:
            self.network.to(memory_format=torch.channels_last)

    def labels(self, y: Tensor) -> Tensor:
        """Return labels, which come in the order of the inputs, as (K, B)."""
        return y.view(-1, self.size).T

    def evaluated(self) -> "list[Program]":
        """Return the programs by which the members are evaluated, in order."""
        return [self]

    def spread(self, x: Tensor) -> Tensor:
        """Give every member the same inputs (B, *in_shape)."""
        return x if self.size == 1 else x.repeat_interleave(self.size, dim=0)

    def member(self, number: int) -> dict[str, Tensor]:
        """Return one member's tensors by name, parameters and buffers, as they are now and will become."""
        state: dict[str, Tensor] = self.network.state_dict()
        return state if self.size == 1 else {name: tensor[number] for name, tensor in state.items()}

    def apart(self, values: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return named tensors in the shapes of the program's own parameters as each member's, without copying them."""
        if self.size == 1:
            return [dict(values)]
        return [{name: tensor[number] for name, tensor in values.items()} for number in range(self.size)]

    def of_members(self, values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join named tensors of all members, in the shapes of the program's own parameters."""
        return {name: values[0][name] if self.size == 1 else torch.stack([v[name] for v in values]) for name in values[0]}

    def load(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Set every member's tensors."""
        with torch.no_grad():
            for name, tensor in self.of_members(states).items():
                self.network.state_dict()[name].copy_(tensor)

    def write_back(self) -> None:
        """Give the networks the values that their members have."""
        if self.size > 1:
            for number, network in enumerate(self.networks):
                load_tensors(network, self.member(number))


class Pack(nn.Module):
    """K networks of one architecture that run, and train, as one.

    Parameters and buffers have the members' names, each tensor with the members in front: (K, *shape). Called on inputs
    (B, K, *in_shape) it returns (K, B, classes), for each member what it would return alone, to rounding. Raises
    NotPackable, ValueError for networks that differ in a shape.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size = len(networks)
        traced = _traced(networks[0])
        _check(traced)
        program = copy.deepcopy(traced)
        for name, module in list(program.named_modules()):
            if (packed := self.packed(module)) is not None:
                program.set_submodule(name, packed)
        self.prepared(program)
        self.program = program
        states = [network.state_dict() for network in networks]
        for name, tensor in self.state_dict().items():
            tensor.copy_(torch.stack([state[name] for state in states]))
        self.train(networks[0].training)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the stacked tensors under the members' names."""
        return dict(self.program.state_dict(*args, **kwargs))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the stacked parameters under the members' names."""
        return self.program.named_parameters(*args, **kwargs)

    def packed(self, module: nn.Module) -> nn.Module | None:
        """Return what does a layer for K members; None for what needs no change."""
        if isinstance(module, nn.Linear):
            return PackedLinear(module, self.size)
        if isinstance(module, nn.Conv2d):
            return PackedConv2d(module, self.size)
        if isinstance(module, _BatchNorm):
            return PackedBatchNorm(module, self.size)
        return None

    def prepared(self, program: fx.GraphModule) -> None:
        """Change the graph, whose layers are packed, into one that is faster."""
        _activate_in_place(program)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, K, *in_shape) to (K, B, classes)."""
        if x.ndim > 3:
            x = x.flatten(1, 2).contiguous(memory_format=torch.channels_last)  # (B, K * C, H, W)
        out: Tensor = self.program(x)
        return out.reshape(len(out), self.size, -1).transpose(0, 1)


class PackedLinear(nn.Module):
    """Linear layers of K members as one batched product: (B, K * I) or (B, K, I) to (B, K, O)."""

    def __init__(self, like: nn.Linear, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(like.weight.new_empty(size, *like.weight.shape))
        self.bias = _stacked_bias(like.bias, size)
        self.fixed = fixed_of(like)  # the same of all members
        self.relu = False

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), self.size, -1).transpose(0, 1)  # (K, B, I)
        out: Tensor = BatchedLinear.apply(*cast_like_autocast(rows, self.whole_weight(), self.bias))
        return (torch.relu_(out) if self.relu else out).transpose(0, 1)  # in place before the view: after it, autograd copies

    def whole_weight(self) -> Tensor:
        """Return the members' weights, (K, O, I), with the entries that the architecture fixes."""
        return self.weight if self.fixed is None else self.fixed(self.weight)


class BatchedLinear(torch.autograd.Function):
    """K linear layers: rows (K, B, I), weight (K, O, I), bias (K, O) or None to (K, B, O).

    Its products are the very ones that torch's linear layer makes, forward and backward, so that on a CPU a member has the
    bits that it has alone; `baddbmm`'s own derivative transposes the weight's.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        if bias is None:
            return torch.bmm(rows, weight.transpose(1, 2))
        return torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        rows, weight = ctx.saved_tensors
        to_rows, _, to_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if to_rows else None,
            torch.bmm(grad.transpose(1, 2), rows),
            grad.contiguous().sum(1) if to_bias else None,  # contiguous: the order in which a lone layer's is added up
        )


class PackedConv2d(nn.Module):
    """Convolutions of K members as one with K times the groups: (B, K * I, H, W) to (B, K * O, H, W)."""

    def __init__(self, like: nn.Conv2d, size: int) -> None:
        super().__init__()
        if like.padding_mode != "zeros":
            raise NotPackable(f"a convolution with padding mode {like.padding_mode!r}")
        weight = like.weight.new_empty(size * like.weight.shape[0], *like.weight.shape[1:], device=like.weight.device)
        weight = weight.contiguous(memory_format=torch.channels_last).unflatten(0, (size, -1))
        self.weight = nn.Parameter(weight)
        self.bias = _stacked_bias(like.bias, size)
        self.fixed = fixed_of(like)
        self.how: dict[str, Any] = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation}
        self.how["groups"] = size * like.groups

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.flatten()
        return F.conv2d(x, self.whole_weight().flatten(0, 1), bias, **self.how)

    def whole_weight(self) -> Tensor:
        """Return the members' weights, (K, O, I, R, S), with the entries that the architecture fixes."""
        return self.weight if self.fixed is None else self.fixed(self.weight)


class PackedBatchNorm(nn.Module):
    """Batch norms of K members as one over K times the channels."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def __init__(self, like: _BatchNorm, size: int) -> None:
        super().__init__()
        if not like.track_running_stats or like.momentum is None or not like.affine:
            raise NotPackable("a batch norm without running statistics, momentum or weights")
        self.momentum, self.eps = like.momentum, like.eps
        shape = (size, like.num_features)
        self.weight, self.bias = (nn.Parameter(like.weight.new_empty(shape)) for _ in range(2))
        self.register_buffer("running_mean", like.weight.new_empty(shape))
        self.register_buffer("running_var", like.weight.new_empty(shape))
        self.register_buffer("num_batches_tracked", torch.zeros(size, dtype=torch.int64, device=like.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = x.flatten(1) if x.ndim == 3 else x  # after a linear layer
        return F.batch_norm(
            x, self.running_mean.view(-1), self.running_var.view(-1), self.weight.flatten(), self.bias.flatten(),
            self.training, self.momentum, self.eps,
        )  # fmt: skip


def _stacked_bias(bias: Tensor | None, size: int) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.new_empty(size, *bias.shape))


def _activate_in_place(program: fx.GraphModule) -> None:
    """Let a ReLU overwrite its input where that is the output of a packed linear layer that nothing else reads."""
    modules = dict(program.named_modules())
    calls = Counter(node.target for node in program.graph.nodes)
    for node in list(program.graph.nodes):
        is_relu = isinstance(modules.get(str(node.target)), nn.ReLU) if node.op == "call_module" else node.target in RELU
        source = node.args[0] if is_relu else None
        if isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1:
            layer = modules[str(source.target)]
            if isinstance(layer, PackedLinear) and calls[source.target] == 1:
                layer.relu = True
                node.replace_all_uses_with(source)
                program.graph.erase_node(node)
    program.recompile()


def _traced(network: nn.Module) -> fx.GraphModule:
    """Return the graph by which a network trains; NotPackable where that is not all that it does, or not in evaluation."""
    try:
        check_tensors(network, tied=False)
        traced, evaluated = (trace(network, training=training) for training in (True, False))
    except ValueError as error:  # UnknownOperation among them
        raise NotPackable(str(error)) from error
    if text_of(traced) != text_of(evaluated):
        raise NotPackable("a network that computes something else in training than in evaluation")
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        raise NotPackable("a network with hooks in its forward pass")
    if traced.state_dict().keys() != network.state_dict().keys():
        raise NotPackable("a network with tensors that its forward pass does not use")
    return traced


def _check(traced: fx.GraphModule) -> None:
    """Raise NotPackable for the first operation that does not work channel by channel."""
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "call_module":
            module = modules[str(node.target)]
            if not isinstance(module, (nn.Linear, nn.Conv2d, _BatchNorm, *BY_CHANNEL_MODULES)) and not _flattens(module):
                raise NotPackable(f"a module of type {type(module).__name__} ({node.target})")
        elif not (node.target in BY_CHANNEL or getattr(node.target, "__name__", "") in BY_CHANNEL_NAMES or _flattens(node)):
            raise NotPackable(f"the operation {getattr(node.target, '__name__', node.target)} (node {node.name})")


def _flattens(what: nn.Module | fx.Node) -> bool:
    """Whether this makes a vector of everything but the batch."""
    if isinstance(what, nn.Module):
        return isinstance(what, nn.Flatten) and (what.start_dim, what.end_dim) == (1, -1)
    if what.target not in (torch.flatten, "flatten"):
        return False
    start = what.args[1] if len(what.args) > 1 else what.kwargs.get("start_dim", 0)
    return bool(start == 1 and len(what.args) < 3 and what.kwargs.get("end_dim", -1) == -1)
