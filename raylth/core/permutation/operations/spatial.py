"""Operations over positions: pooling, resizing and padding."""

from typing import Any

from torch import fx

from raylth.core.permutation.atoms import Layout, Many, concat, fix, fixed, is_free
from raylth.core.permutation.follow import Follower, rule

POOLS = "max_pool avg_pool adaptive_avg_pool adaptive_max_pool upsample_nearest upsample_nearest_exact"
NAMES = [f"aten.{name}{n}d" for name in POOLS.split() for n in (1, 2, 3)] + [
    "aten.upsample_linear1d", "aten.upsample_bilinear2d", "aten.upsample_bicubic2d", "aten.upsample_trilinear3d",
    "aten._upsample_bilinear2d_aa", "aten._upsample_bicubic2d_aa", "aten.mean_pool2d", "aten.lp_pool2d",
]  # fmt: skip
MIXED = {"1": 1, "2": 2, "3": 3}


@rule(*NAMES, "aten.max_pool2d_with_indices", "aten.max_pool1d_with_indices", "aten.adaptive_max_pool2d")
def pooled(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Any:
    """The last axes are positions."""
    source = given.get("self") or given["input"]
    layout = list(follower.layout(source))
    name = str(node.target)
    mixed = next(int(letter) for letter in name if letter in MIXED)
    for axis in range(len(layout) - mixed, len(layout)):
        fix(layout[axis])
    outputs = node.meta["val"] if isinstance(node.meta["val"], tuple | list) else [node.meta["val"]]
    shapes = [tuple(int(length) for length in each.shape) for each in outputs]
    results = [[*layout[:-mixed], *(fixed(length) for length in shape[-mixed:])] for shape in shapes]
    return results if isinstance(node.meta["val"], tuple | list) else results[0]


@rule("aten.pad", "aten.constant_pad_nd", "aten.reflection_pad1d", "aten.reflection_pad2d", "aten.replication_pad2d")
def padded(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Layout:
    layout, pad = list(follower.layout(given["self"])), given.get("pad") or given["padding"]
    before, after = follower.shape(given["self"]), follower.shape(node)
    is_constant = "constant" in str(node.target) or given.get("mode", "") == "constant"
    for axis in range(len(layout)):
        if before[axis] == after[axis]:
            continue
        place = 2 * (len(layout) - 1 - axis)
        first, last = pad[place], pad[place + 1]
        if is_constant and first >= 0 and last >= 0 and is_free(layout[axis]):
            layout[axis] = concat((Many(first), layout[axis], Many(last)))
        else:
            fix(layout[axis])
            layout[axis] = fixed(after[axis])
    return layout
