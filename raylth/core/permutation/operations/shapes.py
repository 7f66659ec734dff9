"""Operations that move entries about and change none."""

from collections.abc import Sequence
from typing import Any

from torch import fx

from raylth.core.permutation.algebra import cut, join, join_layouts, split
from raylth.core.permutation.atoms import Atom, Expr, Layout, Many, Mismatch, concat, fix, fixed, product, size
from raylth.core.permutation.follow import Follower, is_tensor, rule

__all__ = ["reshape"]


def reshape(layout: Layout, before: Sequence[int], after: Sequence[int]) -> Layout:
    """Return a layout behind a view of shape `before` as shape `after`."""
    result: Layout = []
    i = j = 0
    while i < len(before) or j < len(after):
        first_i, first_j = i, j
        size_in = before[i] if i < len(before) else 1
        size_out = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while size_in != size_out:  # the smallest runs of axes, old and new, that hold the same entries
            if size_in < size_out:
                size_in *= before[i]
                i += 1
            else:
                size_out *= after[j]
                j += 1
        whole = product(layout[first_i:i])
        try:
            result += split(whole, after[first_j:j])
        except Mismatch:
            fix(whole)
            result += [fixed(length) for length in after[first_j:j]]
    return result


@rule("aten.view", "aten.reshape", "aten.flatten", "aten.unflatten", "aten.unsqueeze", "aten.squeeze", "aten._unsafe_view")
@rule("aten.reshape_as", "aten.view_as")
def reshaped(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    source = given["self"]
    if any(length == 0 for length in follower.shape(source)):
        return [fixed(length) for length in follower.shape(node)]
    return reshape(follower.layout(source), follower.shape(source), follower.shape(node))


@rule("aten.permute")
def permute(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout = follower.layout(given["self"])
    return [layout[dim] for dim in given["dims"]]


@rule("aten.transpose", "aten.swapaxes", "aten.swapdims", "aten.t", "aten.mT", "aten.numpy_T")
def transpose(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout = list(follower.layout(given["self"]))
    if len(layout) < 2:
        return layout
    one = given.get("dim0", given.get("axis0", -2))
    other = given.get("dim1", given.get("axis1", -1))
    layout[one], layout[other] = layout[other], layout[one]
    return layout


@rule("aten.movedim")
def movedim(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout = follower.layout(given["self"])
    pairs = [[value] if isinstance(value, int) else value for value in (given["source"], given["destination"])]
    places = {to % len(layout): source % len(layout) for source, to in zip(*pairs, strict=True)}
    rest = iter(axis for axis in range(len(layout)) if axis not in places.values())
    return [layout[places[axis] if axis in places else next(rest)] for axis in range(len(layout))]


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout, before, after = follower.layout(given["self"]), follower.shape(given["self"]), follower.shape(node)
    new = len(after) - len(before)
    kept = [expr if old == now else Many(now) for expr, old, now in zip(layout, before, after[new:], strict=True)]
    return [*(Many(length) for length in after[:new]), *kept]


@rule("aten.repeat", "aten.tile")
def repeat(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout = follower.layout(given["self"])
    times = given.get("repeats") or given["dims"]
    full: Layout = [Many(1)] * (len(times) - len(layout)) + list(layout)
    return [product((Many(count), expr)) for count, expr in zip(times, full, strict=True)]


@rule("aten.repeat_interleave")
def repeat_interleave(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout, dim, times = list(follower.layout(given["self"])), given.get("dim"), given.get("repeats")
    if dim is None or not isinstance(times, int):
        raise follower.unknown(node, "a repetition of entries by a tensor, or of all of them")
    layout[dim] = product((layout[dim], Many(times)))
    return layout


@rule("aten.cat", "aten.concat")
def concatenation(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    parts = [part for part in given["tensors"] if follower.shape(part) != (0,)]
    return _concatenated([follower.layout(part) for part in parts], given["dim"])


def _concatenated(layouts: list[Layout], dim: int) -> Layout:
    dim %= len(layouts[0])
    result = list(layouts[0])
    for layout in layouts[1:]:
        for axis in range(len(result)):
            if axis != dim:
                result[axis] = join(result[axis], layout[axis])
    result[dim] = concat(_known(layout[dim]) for layout in layouts)
    return result


def _known(expr: Expr) -> Expr:
    """Return an expression as a part of a concatenation: a single entry is an atom of its own, distinct from the others."""
    return Atom(1, fixed=True) if size(expr) == 1 else expr


@rule("aten.stack")
def stack(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    dim = given["dim"] % len(follower.shape(node))
    layouts = [follower.layout(part) for part in given["tensors"]]
    return _concatenated([[*layout[:dim], Many(1), *layout[dim:]] for layout in layouts], dim)


@rule("aten.chunk", "aten.split", "aten.split_with_sizes", "aten.tensor_split")
def parts(follower: Follower, node: fx.Node, given: dict[str, Any]) -> list[Layout]:
    source = given["self"]
    layout, dim, start, result = follower.layout(source), given["dim"] % len(follower.shape(source)), 0, []
    for part in node.meta["val"]:
        stop = start + int(part.shape[dim])
        result.append(cut(follower.layout(source), dim, start, stop))
        start = stop
    return result if layout else []


@rule("aten.unbind")
def unbind(follower: Follower, node: fx.Node, given: dict[str, Any]) -> list[Layout]:
    dim = given["dim"] % len(follower.shape(given["self"]))
    count = follower.shape(given["self"])[dim]
    return [_selected(follower, given["self"], dim, place) for place in range(count)]


@rule("aten.select")
def select(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    dim = given["dim"] % len(follower.shape(given["self"]))
    return _selected(follower, given["self"], dim, given["index"] % follower.shape(given["self"])[dim])


def _selected(follower: Follower, source: fx.Node, dim: int, place: int) -> Layout:
    layout = follower.layout(source)
    fix(layout[dim])  # chosen by its index
    layout = cut(layout, dim, place, place + 1)
    return [*layout[:dim], *layout[dim + 1 :]]


@rule("aten.slice", "aten.narrow")
def sliced(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    source = given["self"]
    dim = given["dim"] % len(follower.shape(source))
    length, kept = follower.shape(source)[dim], follower.shape(node)[dim]
    layout = follower.layout(source)
    if kept == length:
        return layout
    step = given.get("step", 1)
    if step == 1:
        start = given.get("start") or 0
        start = min(max(start + length if start < 0 else start, 0), length)
        return cut(layout, dim, start, start + kept)
    return _chosen_by_index(follower, node, source, [dim])


def _chosen_by_index(follower: Follower, node: fx.Node, source: fx.Node, dims: Sequence[int]) -> Layout:
    """Return a layout in which entries of some axes were chosen by their places: those stay where they are."""
    layout = list(follower.layout(source))
    for dim in dims:
        fix(layout[dim])
        layout[dim] = fixed(follower.shape(node)[dim])
    return layout


@rule("aten.index_select")
def index_select(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    return _chosen_by_index(follower, node, given["self"], [given["dim"]])


@rule("aten.index")
def index(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    """Axes that are indexed stay in order; the others are unchanged."""
    source, indices = given["self"], given["indices"]
    layout = follower.layout(source)
    by = [axis for axis, each in enumerate(indices) if each is not None]
    for each in indices:
        for expr in follower.layout(each) if is_tensor(each) else ():
            fix(expr)  # an index says which entry it means
    for axis in by:
        fix(layout[axis])
    rest = [axis for axis in range(len(layout)) if axis not in by]
    new = len(follower.shape(node)) - len(rest)
    is_together = by == list(range(by[0], by[0] + len(by)))
    before = [axis for axis in rest if axis < by[0]] if is_together else []
    after = [axis for axis in rest if axis not in before]
    chosen = [fixed(length) for length in follower.shape(node)[len(before) : len(before) + new]]
    return [*(layout[axis] for axis in before), *chosen, *(layout[axis] for axis in after)]


@rule("aten.pixel_shuffle")
def pixel_shuffle(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout, factor = follower.layout(given["self"]), given["upscale_factor"]
    channels, below, beside = split(layout[1], (size(layout[1]) // factor**2, factor, factor))
    for expr in (below, beside, *layout[2:]):
        fix(expr)
    return [layout[0], channels, *(fixed(length) for length in follower.shape(node)[2:])]


@rule("aten.channel_shuffle")
def channel_shuffle(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout, groups = list(follower.layout(given["self"])), given["groups"]
    outer, inner = split(layout[1], (groups, size(layout[1]) // groups))
    layout[1] = product((inner, outer))
    return layout


@rule("aten.glu", activation=True)
def gated(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    dim = given["dim"] % len(follower.shape(node))
    half = follower.shape(node)[dim]
    one = cut(follower.layout(given["self"]), dim, 0, half)
    other = cut(follower.layout(given["self"]), dim, half, 2 * half)
    return join_layouts(one, other)
