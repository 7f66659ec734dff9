"""Sums, means and maxima over axes: they do not depend on the order of what they sum over."""

from typing import Any

from torch import fx

from raylth.core.permutation.atoms import Layout, Many
from raylth.core.permutation.follow import Follower, rule

NAMES = (
    "mean sum amax amin var std prod logsumexp linalg_vector_norm norm max min all any count_nonzero nansum var_mean std_mean"
)


@rule(*(f"aten.{name}" for name in NAMES.split()))
def reduction(follower: Follower, node: fx.Node, given: dict[str, Any]) -> Any:
    operand = given.get("self") or given["input"]
    if given.get("other") is not None:
        raise follower.unknown(node, "the larger of two tensors, to be written as torch.maximum")
    layout, dims = follower.layout(operand), given.get("dim")
    gone = set(range(len(layout))) if dims in (None, []) else {dim % len(layout) for dim in _listed(dims)}
    kept: Layout = []
    for axis, expr in enumerate(layout):
        if axis not in gone:
            kept.append(expr)
        elif given.get("keepdim"):
            kept.append(Many(1))
    if not isinstance(node.meta["val"], tuple | list):
        return kept
    if str(node.target).startswith(("aten.max", "aten.min")):
        raise follower.unknown(node, "where a maximum is")
    return [kept, kept]


def _listed(dims: Any) -> list[int]:
    return [dims] if isinstance(dims, int) else list(dims)
