"""Products of tensors: what is summed over holds the same things in both."""

import itertools
from typing import Any

from torch import fx

from raylth.core.permutation.algebra import join, join_layouts, settle, split
from raylth.core.permutation.atoms import Expr, Layout, Many, Mismatch, Sum, boundaries, concat, fix, fixed, product, size
from raylth.core.permutation.cutting import piece
from raylth.core.permutation.follow import Follower, is_tensor, rule
from raylth.core.permutation.operations.elementwise import broadcast

__all__ = ["contract"]


def contract(one: Layout, other: Layout) -> Layout:
    """Return the layout of a matrix product: (..., i, k) by (..., k, j), the axes before broadcast."""
    batch_one, batch_other = one[:-2], other[:-2]
    length = max(len(batch_one), len(batch_other))
    full = [[Many(1)] * (length - len(batch)) + list(batch) for batch in (batch_one, batch_other)]
    for axis in range(length):
        lengths = [size(batch[axis]) for batch in full]
        for batch in full:
            if size(batch[axis]) == 1:
                batch[axis] = Many(max(lengths))
    # The axes that are summed over, and those that both have, are one; i and j are each of one operand only.
    left = join_layouts([*full[0], Many(size(one[-2])), one[-1]], [*full[1], Many(size(one[-2])), other[-2]])
    return settle([*left[:-2], one[-2], other[-1]])


@rule("aten.matmul", "aten.mm", "aten.bmm")
def matmul(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    tensors = [source for source in node.all_input_nodes if is_tensor(source)]
    one, other = (follower.layout(tensors[place]) for place in (0, -1))
    first: Layout = [Many(1), *one] if len(one) == 1 else one
    second: Layout = [*other, Many(1)] if len(other) == 1 else other
    result = contract(first, second)
    if len(other) == 1:
        result = result[:-1]
    return [*result[:-2], *result[-1:]] if len(one) == 1 and len(other) > 1 else result[: len(follower.shape(node))]


@rule("aten.addmm", "aten.baddbmm")
def addmm(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    first, second = given.get("mat1") or given["batch1"], given.get("mat2") or given["batch2"]
    result = contract(follower.layout(first), follower.layout(second))
    added = follower.layout(given["self"])
    full: Layout = [Many(size(expr)) for expr in result]
    for axis, expr in enumerate(added, len(result) - len(added)):
        full[axis] = full[axis] if size(expr) == 1 else expr
    return join_layouts(result, full)


@rule("aten.linear")
def linear(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout, weight = follower.layout(given["input"]), follower.layout(given["weight"])
    follower.writes(given["weight"])
    result = contract([Many(1), *layout] if len(layout) == 1 else layout, [weight[1], weight[0]])
    result = result[-len(layout) :]
    return _biased(follower, given, result, len(result) - 1)


def _biased(follower: Follower, given: dict[str, Any], layout: Layout, axis: int) -> Layout:
    if given.get("bias") is None:
        return layout
    bias: Layout = [Many(size(expr)) for expr in layout]
    bias[axis] = follower.layout(given["bias"])[0]
    return join_layouts(layout, bias)


CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution")
TRANSPOSED = ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")


@rule(*CONVOLUTIONS, *TRANSPOSED)
def convolution(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    """Channels of convolution groups are summed over inside each group; positions are mixed."""
    layout, weight = follower.layout(given["input"]), follower.layout(given["weight"])
    if len(layout) != len(weight):
        raise follower.unknown(node, "a convolution of a single sample without a batch axis")
    for expr in (*layout[2:], *weight[2:]):
        fix(expr)
    is_transposed = str(node.target).startswith(TRANSPOSED) or given.get("transposed", False)
    follower.writes(given["weight"])
    groups = int(given["groups"])
    lengths = follower.shape(node)
    mixed = (_transposed if is_transposed else _direct)(layout[1], weight[0], weight[1], groups)
    return _biased(follower, given, [layout[0], mixed, *(fixed(length) for length in lengths[2:])], 1)


def _direct(channels: Expr, rows: Expr, inputs: Expr, groups: int) -> Expr:
    """Return the output channels of a weight (groups * outputs, inputs)."""
    if groups == 1:
        join_layouts([Many(size(rows)), channels], [rows, inputs])
        return settle([rows])[0]
    return _by_parts(channels, rows, groups, lambda inside, outer, own: _group(inside, outer, inputs, own))


def _group(channels: Expr, rows: Expr, inputs: Expr, groups: int) -> Expr:
    outer, inner = split(channels, (groups, size(channels) // groups))
    own, outputs = split(rows, (groups, size(rows) // groups))
    joined = join_layouts([outer, Many(size(outputs)), inner], [own, outputs, inputs])
    return product((joined[0], outputs))


def _transposed(channels: Expr, rows: Expr, outputs: Expr, groups: int) -> Expr:
    """Return the output channels of a weight (groups * inputs, outputs)."""
    if groups == 1:
        join_layouts([channels, Many(size(outputs))], [rows, outputs])
        return settle([outputs])[0]

    def group(inside: Expr, outer: Expr, count: int) -> Expr:
        joined = join(inside, outer)
        own, inputs = split(joined, (count, size(joined) // count))
        kept = settle([own, inputs, outputs])
        return product(settle([kept[0], kept[2]]))

    return _by_parts(channels, rows, groups, group)


def _by_parts(channels: Expr, rows: Expr, groups: int, group: Any) -> Expr:
    """Do it for each part of a concatenation, which holds whole convolution groups; what does not stays where it is."""
    count, run = size(channels), size(channels) // groups
    marks = boundaries(channels.parts) if isinstance(channels, Sum) else [0, count]
    own = size(rows) // groups
    if any(mark % run for mark in marks):
        fix(channels)
        marks = [0, count]
    try:
        return concat(
            group(piece(channels, *span), piece(rows, *(mark // run * own for mark in span)), (span[1] - span[0]) // run)
            for span in itertools.pairwise(marks)
        )
    except Mismatch:
        fix(channels)
        fix(rows)
        return rows


@rule("aten.scaled_dot_product_attention")
def attention(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    """softmax(q k^T + mask) v; where heads share keys and values, those heads move together."""
    query, key, value = (list(follower.layout(given[name])) for name in ("query", "key", "value"))
    if given.get("enable_gqa") and size(query[-3]) != size(key[-3]):
        times = size(query[-3]) // size(key[-3])
        key[-3], value[-3] = (product((expr[-3], Many(times))) for expr in (key, value))
    swapped = [*key[:-2], key[-1], key[-2]]
    scores = contract(query, swapped)
    if given.get("attn_mask") is not None:
        mask = follower.layout(given["attn_mask"])
        full: Layout = [Many(size(expr)) for expr in scores]
        for axis, expr in enumerate(mask, len(scores) - len(mask)):
            full[axis] = full[axis] if size(expr) == 1 else expr
        scores = join_layouts(scores, full)
    return contract(scores, value)


@rule("aten.einsum")
def einsum(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    """A letter is one axis in all operands."""
    read, _, written = given["equation"].replace(" ", "").partition("->")
    if "." in read:
        raise follower.unknown(node, "an einsum with an ellipsis")
    letters = sorted(set(read) - {","})
    written = written or "".join(letter for letter in letters if read.count(letter) == 1)
    lengths: dict[str, int] = {}
    operands = read.split(",")
    for names, tensor in zip(operands, given["tensors"], strict=True):
        lengths |= dict(zip(names, follower.shape(tensor), strict=True))
    result: Layout = [Many(lengths[letter]) for letter in letters]
    for names, tensor in zip(operands, given["tensors"], strict=True):
        layout = follower.layout(tensor)
        found = dict(zip(names, layout, strict=True))
        result = join_layouts(result, [found.get(letter, Many(lengths[letter])) for letter in letters])
    return settle([result[letters.index(letter)] for letter in written])


@rule("aten.embedding")
def embedding(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    weight = follower.layout(given["weight"])
    follower.writes(given["weight"])
    fix(weight[0])
    return settle([*follower.layout(given["indices"]), weight[1]])


@rule("aten._weight_norm")
def weight_norm(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    return broadcast(follower, node, [given["v"], given["g"]])
