"""How each of torch's operations propagates permutation groups: the rules that `Walk` applies node by node.

A rule takes the walk, the traced node and, for a module, the module; it returns the layout of the node's output and
records which axes of which parameters hold what. Source of the idea: Git Re-Basin (Ainsworth et al. 2023), whose
specifications were written by hand.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import TensorMetadata
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.core.permutation.axes import FIXED, Entries, Layout, reshape
from raylth.core.permutation.propagate import Walk, rule

LINEAR_NAMES = ("weight", "bias")
NORM_NAMES = ("running_mean", "running_var", "weight", "bias")  # in the order of the functions


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """Return an argument of a call, by position or by name."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def tensors(walk: Walk, node: fx.Node) -> list[fx.Node]:
    return [arg for arg in node.all_input_nodes if arg in walk.layouts]


def only(walk: Walk, node: fx.Node) -> Layout:
    """Return the layout of the first tensor that a node reads."""
    found = tensors(walk, node)
    if not found:
        raise walk.unknown(node, "an operation without a tensor")
    return walk.layouts[found[0]]


def names(walk: Walk, node: fx.Node, module: nn.Module | None, wanted: tuple[str, ...], first: int) -> list[str | None]:
    """Return the parameters of a module, or those that a function is given from position `first` on, by name."""
    if module is not None:
        return [f"{node.target}.{name}" if getattr(module, name, None) is not None else None for name in wanted]
    given = [argument(node, first + place, name) for place, name in enumerate(wanted)]
    for name, value in zip(wanted, given, strict=True):
        if isinstance(value, fx.Node) and value.op != "get_attr":
            raise walk.unknown(node, f"a layer whose {name} is computed")
    return [str(value.target) if isinstance(value, fx.Node) else None for value in given]


@rule(
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, torch.relu, torch.relu_, F.relu, F.relu_, F.relu6, F.gelu, F.silu, F.mish,
    F.elu, F.selu, F.leaky_relu, F.softplus, F.hardswish, F.hardsigmoid, F.hardtanh, torch.tanh, torch.sigmoid, F.sigmoid,
    F.tanh, "relu", "relu_", "tanh", "sigmoid", activation=True,
)  # fmt: skip
@rule(
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, F.dropout, F.dropout2d, torch.clamp,
    torch.abs, torch.exp, torch.sqrt, torch.square, operator.neg, F.softmax, F.log_softmax, torch.softmax, "contiguous",
    "clone", "detach", "clamp", "abs", "exp", "sqrt", "square", "softmax", "float", "to", "type",
    "torchvision.ops.stochastic_depth.stochastic_depth",
)  # fmt: skip
def elementwise(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    return only(walk, node)


@rule(
    operator.add, operator.iadd, torch.add, "add", "add_", operator.sub, operator.isub, torch.sub, "sub", operator.mul,
    operator.imul, torch.mul, "mul", "mul_", operator.truediv, torch.div, "div", operator.pow, torch.pow, "pow",
)  # fmt: skip
def arithmetic(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    """Operands are broadcast against one another; where two have the same axis, it holds the same units."""
    shape = walk.shape(node)
    result: list[Entries] = []
    for dim, length in enumerate(shape):
        met: list[Entries] = []
        for operand in tensors(walk, node):
            own = dim - len(shape) + len(walk.shape(operand))
            if own >= 0 and walk.shape(operand)[own] == length:
                met.append(walk.layouts[operand][own])
        joined = met[0]
        for other in met[1:]:
            joined = walk.units.union(joined, other)
        result.append(joined)
    return tuple(result)


@rule(nn.Linear, F.linear)
def linear(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    layout = only(walk, node)
    weight, bias = names(walk, node, module, LINEAR_NAMES, 1)
    assert weight is not None
    walk.read(weight, 1, layout[-1])
    out = walk.output(weight, 0, weight.removesuffix(".weight"))
    walk.read(bias, 0, out)
    return (*layout[:-1], out)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d)
def convolution(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    groups = module.groups if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else argument(node, 6, "groups", 1)
    return _convolve(walk, node, module, groups, out_axis=0)


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    assert isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    return _convolve(walk, node, module, module.groups, out_axis=1)


def _convolve(walk: Walk, node: fx.Node, module: nn.Module | None, groups: int, out_axis: int) -> Layout:
    layout = only(walk, node)
    weight, bias = names(walk, node, module, LINEAR_NAMES, 1)
    if weight is None or len(layout) != walk.tensors[weight].ndim:
        raise walk.unknown(node, "a convolution of a single sample without a batch axis")
    for entries in layout[2:]:
        walk.units.fix(entries)
    if groups == 1:
        walk.read(weight, 1 - out_axis, layout[1])
        out = walk.output(weight, out_axis, weight.removesuffix(".weight"))
    else:
        out = _grouped(walk, node, weight, groups, out_axis)
    walk.read(bias, 0, out)
    return (layout[0], out, *[None] * (len(layout) - 2))


def _grouped(walk: Walk, node: fx.Node, weight: str, groups: int, out_axis: int) -> Entries:
    """Let whole convolution groups move, inputs and outputs together; in a depthwise convolution these are channels.

    The order inside a convolution group stays as it is: a subgroup of the full symmetry where a group has several inputs
    or outputs. The rows of the weight move; its other channel axis, which counts inside a group, does not.
    """
    source = walk.units.expand(walk.layouts[tensors(walk, node)[0]][1])
    run, run_out = walk.shape(tensors(walk, node)[0])[1] // groups, walk.shape(node)[1] // groups
    out: list[tuple[int, int]] = []
    name, start = weight.removesuffix(".weight"), 0
    for owner, length in source:
        if start % run or length % run:
            walk.units.fix(source)
            return ((FIXED, walk.shape(node)[1]),)
        out.append(walk.units.tie((owner, length), run, f"{name}[{start}]" if start else name, run_out))
        start += length
    rows = tuple(out) if out_axis == 0 else tuple(source)
    walk.read(weight, 0, rows)
    return tuple(out)


@rule(
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, _BatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, F.batch_norm, F.instance_norm,
)  # fmt: skip
def channel_norm(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    layout = only(walk, node)
    for name in names(walk, node, module, NORM_NAMES, 1):
        walk.read(name, 0, layout[1])
    return layout


@rule(nn.GroupNorm)
def group_norm(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    """One group is no restriction; of several, whole groups can move and the order inside each stays as it is."""
    assert isinstance(module, nn.GroupNorm)
    layout = only(walk, node)
    if module.num_groups > 1:
        walk.units.coarsen(layout[1], module.num_channels // module.num_groups)
    for name in names(walk, node, module, LINEAR_NAMES, 2):
        walk.read(name, 0, layout[1])
    return layout


@rule(nn.LayerNorm, nn.RMSNorm, F.layer_norm, F.rms_norm)
def layer_norm(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    """Mean and deviation over an axis do not ask for the order of its entries."""
    layout = only(walk, node)
    for name in names(walk, node, module, LINEAR_NAMES, 2):
        if name is not None:
            ndim = walk.tensors[name].ndim
            for dim, entries in enumerate(layout[-ndim:]):
                walk.read(name, dim, entries)
    return layout


@rule(
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
    F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d, torch.max_pool2d, F.interpolate, F.pad,
)  # fmt: skip
def spatial(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    """Positions are mixed and channels are not; an axis with an owner that changes its length is not known."""
    layout, before, after = only(walk, node), walk.shape(tensors(walk, node)[0]), walk.shape(node)
    if any(entries is not None and old != new for entries, old, new in zip(layout, before, after, strict=True)):
        raise walk.unknown(node, "a pooling or padding of channels")
    for entries in layout[2:]:
        walk.units.fix(entries)
    return tuple(entries if dim < 2 else None for dim, entries in enumerate(layout))


@rule(nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.unsqueeze, torch.squeeze)
@rule("flatten", "reshape", "view", "unsqueeze", "squeeze", "unflatten")
def reshaping(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    before, after = walk.shape(tensors(walk, node)[0]), walk.shape(node)
    layout = reshape(only(walk, node), before, after)
    if layout is None:
        raise walk.unknown(node, f"a reshape of {before} to {after}")
    return layout


@rule(torch.permute, "permute")
def permute(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    layout, dims = only(walk, node), node.kwargs.get("dims", node.args[1:])
    assert isinstance(dims, list | tuple)
    order: Any = dims[0] if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims
    return tuple(layout[dim] for dim in order)


@rule(torch.transpose, torch.swapaxes, "transpose", "swapaxes")
def transpose(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    layout = list(only(walk, node))
    one, other = argument(node, 1, "dim0"), argument(node, 2, "dim1")
    layout[one], layout[other] = layout[other], layout[one]
    return tuple(layout)


@rule(torch.mean, torch.sum, torch.amax, torch.amin, torch.var, torch.std, "mean", "sum", "amax", "amin", "var", "std")
def reduction(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    """A sum over units does not ask for their order; the other axes stay."""
    layout, dims = only(walk, node), argument(node, 1, "dim")
    if dims is None:
        return ()
    gone = {dim % len(layout) for dim in ([dims] if isinstance(dims, int) else dims)}
    if len(walk.shape(node)) == len(layout):
        return tuple(None if dim in gone else entries for dim, entries in enumerate(layout))
    return tuple(entries for dim, entries in enumerate(layout) if dim not in gone)


@rule(torch.cat, torch.concat)
def concatenation(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    parts: Any = argument(node, 0, "tensors")
    layouts, shapes = [walk.layouts[part] for part in parts], [walk.shape(part) for part in parts]
    dim = argument(node, 1, "dim", 0) % len(shapes[0])
    result = list(layouts[0])
    for layout in layouts[1:]:
        for axis in range(len(result)):
            if axis != dim:
                result[axis] = walk.units.union(result[axis], layout[axis])
    joined: list[tuple[int, int]] = []
    for layout, shape in zip(layouts, shapes, strict=True):
        joined += layout[dim] or ((FIXED, shape[dim]),)
    result[dim] = tuple(joined)
    return tuple(result)


@rule(operator.getitem)
def indexing(walk: Walk, node: fx.Node, module: nn.Module | None) -> Layout:
    """An index may cut positions; an axis whose units can move must be taken whole."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if not isinstance(source.meta.get("tensor_meta"), TensorMetadata):
        raise walk.unknown(node, "a part of a tuple")
    index: Any = node.args[1]
    index = index if isinstance(index, tuple) else (index,)
    result: list[Entries] = []
    layout = list(walk.layouts[source])
    if Ellipsis in index:
        place = index.index(Ellipsis)
        whole = (slice(None),) * (len(layout) - len(index) + 1)
        index = (*index[:place], *whole, *index[place + 1 :])
    for entry, entries in zip((*index, *[slice(None)] * (len(layout) - len(index))), layout, strict=True):
        if entry == slice(None):
            result.append(entries)
            continue
        if any(walk.units.find(owner) != FIXED for owner, _ in walk.units.expand(entries)):
            raise walk.unknown(node, "an index into units")
        if isinstance(entry, slice):
            result.append(None)
        elif not isinstance(entry, int):
            raise walk.unknown(node, f"an index by {entry}")
    return tuple(result)
