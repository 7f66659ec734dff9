"""Normalisations: statistics over an axis do not depend on the order of its entries."""

import itertools
from typing import Any

from torch import fx

from raylth.core.permutation.algebra import join_layouts, split
from raylth.core.permutation.atoms import Layout, Many, Sum, boundaries, size
from raylth.core.permutation.cutting import piece
from raylth.core.permutation.follow import Follower, rule

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")


def per_channel(follower: Follower, given: dict[str, Any], layout: Layout, names: tuple[str, ...], axis: int = 1) -> Layout:
    """Return a layout whose channels are those of vectors with one entry for each."""
    for name in names:
        if given.get(name) is not None:
            vector: Layout = [Many(size(expr)) for expr in layout]
            vector[axis] = follower.layout(given[name])[0]
            layout = join_layouts(layout, vector)
    return layout


@rule("aten.batch_norm", "aten.instance_norm", "aten._native_batch_norm_legit_no_training", "aten.native_batch_norm")
def batch_norm(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Any:
    layout = per_channel(follower, given, follower.layout(given["input"]), (*STATISTICS, *AFFINE))
    if isinstance(node.meta["val"], tuple | list):
        return [layout, *([layout[1]] if each.numel() else [Many(0)] for each in node.meta["val"][1:])]
    return layout


@rule("aten.group_norm")
def group_norm(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    """Whole groups can move, and units inside each."""
    layout = follower.layout(given["input"])
    count, run = size(layout[1]), size(layout[1]) // given["num_groups"]
    if given["num_groups"] > 1:
        marks = boundaries(layout[1].parts) if isinstance(layout[1], Sum) else [0, count]
        for span in itertools.pairwise(marks):
            split(piece(layout[1], *span), ((span[1] - span[0]) // run, run))
    return per_channel(follower, given, layout, AFFINE)


@rule("aten.layer_norm", "aten.rms_norm", "aten.native_layer_norm")
def layer_norm(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Any:
    layout = follower.layout(given["input"])
    for name in AFFINE:
        if given.get(name) is not None:
            affine = follower.layout(given[name])
            rest: Layout = [Many(size(expr)) for expr in layout[: len(layout) - len(affine)]]
            layout = join_layouts(layout, [*rest, *affine])
    if isinstance(node.meta["val"], tuple | list):
        kept = len(given["normalized_shape"])
        statistics = [*layout[: len(layout) - kept], *[Many(1)] * kept]
        return [layout, statistics, statistics]
    return layout
