"""Residual shortcuts, found in a network's graph: layers by which a sum's input passes its branch by."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.graph import UnknownOperation, layer_type, trace

__all__ = ["shortcut_layers"]

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
WEIGHTED = {
    nn.Linear, F.linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d, nn.ConvTranspose1d,
    nn.ConvTranspose2d, nn.ConvTranspose3d,
}  # fmt: skip
# Operations that are no activation function; one that is not listed counts as one.
PLAIN = {
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, F.dropout, F.dropout2d, torch.clamp, torch.abs,
    torch.exp, torch.sqrt, torch.square, operator.neg, F.softmax, F.log_softmax, torch.softmax, "contiguous", "clone",
    "detach", "clamp", "abs", "exp", "sqrt", "square", "softmax", "float", "to", "type",
    "torchvision.ops.stochastic_depth.stochastic_depth", *SUMS, operator.sub, operator.isub, torch.sub, "sub", operator.mul,
    operator.imul, torch.mul, "mul", "mul_", operator.truediv, torch.div, "div", operator.pow, torch.pow, "pow",
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, _BatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, F.batch_norm, F.instance_norm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, F.layer_norm, F.rms_norm,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
    F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d, torch.max_pool2d, F.interpolate, F.pad, nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape,
    torch.unsqueeze, torch.squeeze, "flatten", "reshape", "view", "unsqueeze", "squeeze", "unflatten", torch.permute,
    "permute", torch.transpose, torch.swapaxes, "transpose", "swapaxes", torch.mean, torch.sum, torch.amax, torch.amin,
    torch.var, torch.std, "mean", "sum", "amax", "amin", "var", "std", torch.cat, torch.concat, operator.getitem,
}  # fmt: skip


def shortcut_layers(model: nn.Module) -> set[str] | None:
    """Return the layers with weights that lie on residual shortcuts, by the name of their weight; None where it is not known.

    Where two tensors are added that come from one, a shortcut is the side whose own way has layers, but no activation behind
    any of them, while the other's has: a projection beside a branch. None is for a network that cannot be traced.
    """
    try:
        traced = trace(model)
    except UnknownOperation:
        return None
    modules = dict(traced.named_modules())
    nodes = list(traced.graph.nodes)
    before: dict[fx.Node, int] = {}  # each node with all that it is computed from, as bits
    layers: dict[int, str] = {}  # a layer's bit -> the name of its weight
    constants, activations = 0, list[tuple[int, int]]()
    for place, node in enumerate(nodes):
        before[node] = 1 << place
        for read in node.all_input_nodes:
            before[node] |= before[read]
        if (weight := _weight(node, modules)) is not None:
            layers[1 << place] = weight
        elif _is_activation(node, modules):
            activations.append((1 << place, before[node]))
        constants |= (node.op == "get_attr") << place
    found: set[str] = set()
    for node in nodes:
        if node.op == "call_module" or node.target not in SUMS or len(set(node.all_input_nodes)) != 2:
            continue
        one, other = (before[read] for read in dict.fromkeys(node.all_input_nodes))
        if not one & other & ~constants:
            continue  # a bias
        ways = [way & ~beside for way, beside in ((one, other), (other, one))]
        weighted = [sum(bit for bit in layers if bit & way) for way in ways]
        is_branch = [
            any(bit & way and read & here for bit, read in activations) for way, here in zip(ways, weighted, strict=True)
        ]
        for here, itself, beside in ((weighted[0], *is_branch), (weighted[1], *is_branch[::-1])):
            if beside and not itself:
                found |= {name for bit, name in layers.items() if bit & here}
    return found


def _weight(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """Return the name of the weight of a convolution or linear layer, or of what its weight is computed from; None for
    anything else."""
    if _kind(node, modules) not in WEIGHTED:
        return None
    if node.op == "call_module":
        return f"{node.target}.weight"
    waiting = [node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")]
    while waiting:
        read = waiting.pop()
        if isinstance(read, fx.Node):
            if read.op == "get_attr" and str(read.target).split(".")[-1] == "weight":
                return str(read.target)
            waiting += read.all_input_nodes
    return None


def _is_activation(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node is an activation function, or an operation of unknown kind."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return False
    kind = _kind(node, modules)
    name = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"
    return kind not in WEIGHTED and kind not in PLAIN and name not in PLAIN


def _kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> Any:
    """Return the type of a node's module, or its function or method."""
    return layer_type(modules[str(node.target)]) if node.op == "call_module" else node.target
