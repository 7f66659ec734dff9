"""Operations that work entry by entry: operands are broadcast, and an axis that two of them have holds the same things."""

from typing import Any

from torch import fx

from raylth.core.permutation.algebra import join_layouts
from raylth.core.permutation.atoms import Layout, Many, fix, fixed, is_free
from raylth.core.permutation.follow import Follower, is_tensor, rule

__all__ = ["broadcast"]

ACTIVATIONS = (
    "relu", "relu6", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "rrelu", "tanh", "sigmoid", "softplus",
    "softsign", "hardswish", "hardsigmoid", "hardtanh", "hardshrink", "softshrink", "log_sigmoid", "threshold",
)  # fmt: skip
UNARY = (
    "abs", "neg", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "square", "reciprocal", "sin",
    "cos", "tan", "sinh", "cosh", "asin", "acos", "atan", "erf", "erfc", "sign", "sgn", "ceil", "floor", "round", "trunc",
    "frac", "clamp", "clamp_min", "clamp_max", "dropout", "feature_dropout", "alpha_dropout", "native_dropout", "contiguous",
    "clone", "detach", "alias", "lift_fresh_copy", "to", "_to_copy", "type_as", "isnan", "isinf", "isfinite", "logical_not",
    "bitwise_not", "nan_to_num", "logit", "softmax", "_softmax", "log_softmax", "_log_softmax", "positive", "zeros_like",
    "ones_like", "full_like", "float", "half", "bfloat16", "double",
)  # fmt: skip
OF_SEVERAL = (
    "add", "sub", "mul", "div", "true_divide", "floor_divide", "remainder", "fmod", "pow", "maximum", "minimum", "atan2",
    "where", "addcmul", "addcdiv", "lerp", "rsub", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or",
    "logical_xor", "bitwise_and", "bitwise_or", "masked_fill", "copysign", "xlogy", "hypot",
)  # fmt: skip


def broadcast(follower: Follower, node: fx.Node, operands: list[fx.Node]) -> Layout:
    """Return the layout of operands that are broadcast against one another to the shape of a node."""
    shape = follower.shape(node)
    result: Layout = [Many(length) for length in shape]
    for operand in operands:
        layout, lengths = follower.layout(operand), follower.shape(operand)
        missing = len(shape) - len(layout)
        full: Layout = [Many(shape[axis]) for axis in range(missing)]
        for axis, (expr, length) in enumerate(zip(layout, lengths, strict=True), missing):
            full.append(Many(shape[axis]) if length == 1 else expr)
        result = join_layouts(result, full)
    return result


def write(follower: Follower, node: fx.Node, target: fx.Node, layout: Layout) -> Layout:
    """File what an operation writes into one of its operands; what else was read from there must not change by it."""
    before = follower.layout(target)
    new = [axis for axis, (old, now) in enumerate(zip(before, layout, strict=True)) if isinstance(old, Many) and old != now]
    if any(is_free(layout[axis]) for axis in new):
        base = target
        while (source := _viewed(base)) is not None:
            base = source
        if base is not target:
            raise follower.unknown(node, "an operation that writes into a part of a tensor")
    follower.layouts[target] = layout
    return layout


def _viewed(node: fx.Node) -> fx.Node | None:
    """Return the tensor of which a node is a view."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not node.args or not is_tensor(node.args[0]):
        return None
    first = schema.arguments[0].alias_info
    is_view = first is not None and not first.is_write
    return node.args[0] if is_view else None  # type: ignore[return-value]


def _operands(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if is_tensor(source)]


def entrywise(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    return broadcast(follower, node, _operands(node))


def first_only(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    return follower.layout(_operands(node)[0])


def entrywise_in_place(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    return write(follower, node, _operands(node)[0], broadcast(follower, node, _operands(node)))


rule(*(f"aten.{name}" for name in ACTIVATIONS), activation=True)(first_only)
rule(*(f"aten.{name}" for name in UNARY))(first_only)
rule(*(f"aten.{name}" for name in OF_SEVERAL))(entrywise)
rule(*(f"aten.{name}_" for name in ACTIVATIONS), activation=True)(entrywise_in_place)
rule(*(f"aten.{name}_" for name in (*UNARY, *OF_SEVERAL, "copy")))(entrywise_in_place)


@rule("aten.prelu", activation=True)
def prelu(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout, (slope,) = follower.layout(given["self"]), follower.layout(given["weight"])
    if len(layout) < 2 or isinstance(slope, Many):
        return layout
    others: Layout = [Many(length) for length in follower.shape(node)]
    return join_layouts(layout, [*others[:1], slope, *others[2:]])


@rule("aten.zeros", "aten.ones", "aten.full", "aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.scalar_tensor")
@rule("aten.empty", "aten.new_empty", "aten.fill", "aten.zero_", "aten.fill_")
def constant(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    return [Many(length) for length in follower.shape(node)]


@rule("aten.cumsum", "aten.cumprod", "aten.sort", "aten.flip", "aten.roll")
def ordered(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Any:
    """What depends on the order of an axis keeps that axis where it is."""
    layout = list(follower.layout(given["self"]))
    dims = given.get("dims") or given.get("dim")
    for dim in range(len(layout)) if dims in (None, []) else [dims] if isinstance(dims, int) else dims:
        fix(layout[dim])
        layout[dim] = fixed(follower.shape(given["self"])[dim])
    return [layout, layout] if isinstance(node.meta["val"], tuple | list) else layout
