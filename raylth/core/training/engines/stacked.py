"""Several networks of one architecture as one, with convolutions and batch norms of our own (Triton).

Activations are (K * B, C, H, W) with channels last, member after member: what works sample by sample (activation functions,
pools, sums) needs no change. A batch norm takes its statistics from the convolution before it, and a sum and a ReLU behind it
become part of it: an activation is then read and written about 13 times in a step, and 22 times by torch's own kernels.
"""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.precision import cast_like_autocast
from raylth.core.state import load_tensors
from raylth.core.training.engines import stacked_ops
from raylth.core.training.packing import (
    RELU,
    BatchedLinear,
    NotPackable,
    Pack,
    PackedBatchNorm,
    PackedConv2d,
    PackedLinear,
    Program,
)

__all__ = ["Stacked"]

ADD: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}


class Stacked(Program):
    """K networks of one architecture whose convolutions are one kernel; NotPackable for what that kernel cannot do."""

    engine = "stacked"

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks, self.size = list(networks), len(networks)
        self.network = StackedPack(networks)
        self.runs = self.network

    def __call__(self, x: Tensor, count: int) -> Tensor:
        """Map inputs (K * count, *in_shape), member after member, to logits (K, count, classes)."""
        logits: Tensor = self.network(x)
        return logits.view(self.size, count, -1)

    def use_channels_last(self) -> None:
        """Do nothing: the weights lie so."""

    def labels(self, y: Tensor) -> Tensor:
        """Return labels, which come member after member, as (K, B)."""
        return y.view(self.size, -1)

    def member(self, number: int) -> dict[str, Tensor]:
        """Return one member's tensors by name, as they are now and will become."""
        return {name: tensor[number] for name, tensor in self.network.state_dict().items()}

    def apart(self, values: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return stacked tensors as each member's, without copying them."""
        return [{name: tensor[number] for name, tensor in values.items()} for number in range(self.size)]

    def of_members(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Join named tensors of all members, in the shapes of the stacked parameters."""
        return {name: torch.stack([each[name] for each in values]) for name in values[0]}

    def write_back(self) -> None:
        """Give the networks the values that their members have."""
        for number, network in enumerate(self.networks):
            load_tensors(network, self.member(number))


class StackedPack(Pack):
    """A `Pack` whose activations lie member after member: (K * B, C, H, W), channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (K * B, *in_shape), member after member, to (K * B, classes)."""
        out: Tensor = self.program(x)
        return out

    def packed(self, module: nn.Module) -> nn.Module | None:
        """Return what does a layer for K members; None for what needs no change."""
        if isinstance(module, nn.Linear):
            return StackedLinear(module, self.size)
        if isinstance(module, nn.Conv2d):
            return StackedConv2d(module, self.size)
        if isinstance(module, _BatchNorm):
            return StackedBatchNorm(module, self.size)
        return None

    def prepared(self, program: fx.GraphModule) -> None:
        """Have each convolution hand its output's moments to the batch norm behind it, and fuse what follows that."""
        calls = Counter(node.target for node in program.graph.nodes if node.op == "call_module")
        layers = dict(program.named_modules())
        for node in list(program.graph.nodes):
            if node.op == "call_module" and isinstance(layers[node.target], StackedBatchNorm) and calls[node.target] == 1:
                _take_moments(program, node, layers, calls)
                _fuse(program, node, layers)
        program.graph.lint()
        program.recompile()


def _take_moments(program: fx.GraphModule, norm: fx.Node, layers: dict[str, nn.Module], calls: Counter[Any]) -> None:
    source = norm.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1 or calls[source.target] > 1:
        return
    convolution = layers[str(source.target)]
    if isinstance(convolution, StackedConv2d) and convolution.bias is None:
        convolution.moments = True
        with program.graph.inserting_after(source):
            parts = [program.graph.call_function(operator.getitem, (source, number)) for number in (2, 1, 0)]
        norm.args = tuple(reversed(parts))


def _fuse(program: fx.GraphModule, norm: fx.Node, layers: dict[str, nn.Module]) -> None:
    """Make a sum of which a batch norm's output is a part, and a ReLU behind it, part of the batch norm."""
    layer = layers[str(norm.target)]
    assert isinstance(layer, StackedBatchNorm)
    (user,) = norm.users if len(norm.users) == 1 else (None,)
    if user is not None and user.target in ADD and len(user.args) == 2 and not user.kwargs and len(user.users) == 1:
        other = user.args[1] if user.args[0] is norm else user.args[0]
        (after,) = user.users
        if isinstance(other, fx.Node) and other is not norm and _is_relu(after, layers):
            arguments = (*norm.args, *(None,) * (3 - len(norm.args)), other)
            with program.graph.inserting_before(user):  # by then the other part is there
                fused = program.graph.call_module(str(norm.target), arguments)
            layer.relu = True
            _replace(program, (after, user, norm), fused)
    elif user is not None and _is_relu(user, layers):
        layer.relu = True
        _replace(program, (user,), norm)


def _replace(program: fx.GraphModule, nodes: Sequence[fx.Node], by: fx.Node) -> None:
    nodes[0].replace_all_uses_with(by)
    for node in nodes:
        program.graph.erase_node(node)


def _is_relu(node: fx.Node, layers: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(layers[str(node.target)], nn.ReLU)
    return node.target in RELU and len(node.args) == 1


class StackedLinear(PackedLinear):
    """Linear layers of K members as one batched product: (K * B, I) to (K * B, O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the vectors of all members."""
        rows = x.reshape(self.size, -1, x.shape[-1])
        out: Tensor = BatchedLinear.apply(*cast_like_autocast(rows, self.whole_weight(), self.bias))
        return (torch.relu_(out) if self.relu else out).flatten(0, 1)


class StackedConv2d(PackedConv2d):
    """Convolutions of K members as one kernel: (K * B, I, H, W) to (K * B, O, H', W'), and with `moments` its statistics."""

    def __init__(self, like: nn.Conv2d, size: int) -> None:
        super().__init__(like, size)
        if like.groups > 1 or any(step > 1 for step in like.dilation) or isinstance(like.padding, str):
            raise NotPackable("a convolution with groups, a dilation or a padding by name")
        self.size, self.moments = size, False
        self.stride, self.padding = _pair(like.stride), _pair(like.padding)

    def forward(self, x: Tensor) -> Any:
        """Map the images of all members."""
        (images,) = cast_like_autocast(_by_member(x, self.size))
        weight = self.whole_weight().permute(0, 1, 3, 4, 2)  # (K, O, R, S, I), as it lies
        convolve: Any = stacked_ops.conv2d  # what it returns depends on `moments`
        found = convolve(images, weight, stride=self.stride, padding=self.padding, moments=self.moments)
        if self.moments:
            return _by_sample(found[0]), found[1], found[2]
        if self.bias is not None:
            found = found + self.bias[:, None, None, None].to(found.dtype)
        return _by_sample(found)


class StackedBatchNorm(PackedBatchNorm):
    """Batch norms of K members in training, with a sum and a ReLU behind them where they are fused with it."""

    def __init__(self, like: _BatchNorm, size: int) -> None:
        super().__init__(like, size)
        self.size, self.relu = size, False

    def forward(
        self, x: Tensor, mean: Tensor | None = None, variance: Tensor | None = None, other: Tensor | None = None
    ) -> Tensor:
        """Normalise (K * B, C, H, W) or (K * B, C) by mean and biased variance (K, C), of the batch where none are given."""
        y = _by_member(x, self.size)
        if mean is None or variance is None:
            mean, variance = stacked_ops.moments(y)
        self._note(mean, variance, y.numel() // (self.size * y.shape[-1]))
        residual = None if other is None else _by_member(other, self.size).to(y.dtype)
        z = stacked_ops.norm(y, mean, variance, self.weight, self.bias, residual, eps=self.eps, relu=self.relu)
        return _by_sample(z) if x.ndim == 4 else z.view(x.shape)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards the batch's, with the unbiased variance."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(variance.detach() * (count / max(count - 1, 1)), self.momentum)


def _by_member(x: Tensor, size: int) -> Tensor:
    """View (K * B, C, H, W) with channels last as (K, B, H, W, C), or (K * B, C) as (K, B, 1, 1, C)."""
    if x.ndim == 2:
        return x.reshape(size, -1, 1, 1, x.shape[1])
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).unflatten(0, (size, -1))


def _by_sample(x: Tensor) -> Tensor:
    """View (K, B, H, W, C) as (K * B, C, H, W) with channels last."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
