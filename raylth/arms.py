"""The arms of the study: whose early weights are trained, and under which form of A's mask (paper, section 4). One table.

Settings, planning, computation, tables, figures and model cards all read it. An arm of one's own is one more object of
`Arm`, which `sparse.arms` names by its import path (`package.module:object`) or by an entry point of the group `raylth.arms`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from raylth.common.registry import Registry, UnknownName

__all__ = ["ARMS", "BUILT_IN", "Arm", "arm_of", "rank", "short_name"]


@dataclass(frozen=True)
class Arm:
    """One way of training sparsely: the weights of A or B at the rewind point, under A's mask as `transform` changes it.

    `transform` is "none", "permute" (pi, which matching found), "shuffle" (inside each layer), "random_permutation", or a
    function of one's own, `transform(mask, given) -> mask`. A mask maps each prunable weight's name to a bool tensor of its
    shape, True where the weight is alive; `given` is a `raylth.stages.Given`.
    """

    weights_from: Literal["A", "B"]
    transform: str | Callable[..., Any]
    summary: str  # what trains under which mask: for model cards
    colour: str = "#666666"
    marker: str = "D"  # matplotlib's
    needs_match: bool = False  # whether it reads pi: one network for each way of matching and epoch of B
    needs_seed: bool = False  # whether it draws random numbers


ARMS: Registry[Arm] = Registry("arm", group="raylth.arms")
BUILT_IN = {  # in the order of tables and legends; colours of Okabe and Ito (2008)
    "lth": Arm("A", "none", "A's early weights under A's mask: the lottery ticket", "#0072B2", "o"),
    "permuted": Arm("B", "permute", "B's early weights under A's mask, permuted to B", "#D55E00", "s", needs_match=True),
    "naive": Arm("B", "none", "B's early weights under A's mask as it is", "#009E73", "^"),
    "random_permutation": Arm(
        weights_from="B",
        transform="random_permutation",
        summary="B's early weights under A's mask, under a random permutation",
        colour="#CC79A7",
        marker="v",
        needs_seed=True,
    ),
    "random": Arm(
        weights_from="B",
        transform="shuffle",
        summary="B's early weights under A's mask, shuffled inside each layer",
        colour="#7F7F7F",
        marker="x",
        needs_seed=True,
    ),
}
for _name, _arm in BUILT_IN.items():
    ARMS.register(_name)(_arm)


def arm_of(name: str) -> Arm:
    """Return an arm for display; a neutral one where its module is not on this machine, as for a store from elsewhere."""
    try:
        found = ARMS[name]
    except UnknownName:
        found = None
    return found if isinstance(found, Arm) else Arm("B", "none", f"the arm {name}")


def rank(name: str) -> int:
    """Return an arm's place in tables and legends: those of the package first."""
    return list(BUILT_IN).index(name) if name in BUILT_IN else len(BUILT_IN)


def short_name(name: str) -> str:
    """Return an arm's name as legends and headings have it: an import path without its module."""
    return name.rpartition(":")[2]
