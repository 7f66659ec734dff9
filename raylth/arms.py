"""The arms of the study: whose early weights are trained, and under which form of A's mask (paper, section 4). One table.

Settings, planning, computation, tables, figures and model cards all read it. An arm of one's own is one more object of
`Arm`, which `sparse.arms` names by its import path (`package.module:object`) or by an entry point of the group `raylth.arms`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from raylth.common.registry import Registry, UnknownName

__all__ = ["ARMS", "BUILT_IN", "Arm", "arm_of", "rank", "short_name", "split_move"]

TRANSFORMS = ("none", "permute", "shuffle", "random_permutation")
DRAWN = ("shuffle", "random_permutation")


@dataclass(frozen=True)
class Arm:
    """One way of training sparsely: the weights of A or B at the rewind point, under A's mask as `transform` changes it.

    `transform` is "none", "permute" (pi, which matching found), "shuffle" (inside each layer), "random_permutation", or a
    function of one's own, `transform(mask, given) -> mask`. A mask maps each prunable weight's name to a bool tensor of its
    shape, True where the weight is alive; `given` is a `raylth.stages.Given`.

    With `signs="A"` each alive weight keeps its magnitude and gets the sign that its mask entry has in the network that A's
    mask was found with; where that weight is 0 it keeps its own. A sign moves with the mask entry, except under "shuffle",
    where signs stay where pi (with needs_match), or A itself, has them.

    `against` names the arms that a report compares it with, as this arm less the other, where a sweep has both.

    Raises TypeError or ValueError for a field that is none of these, and for a transform without what it reads.
    """

    weights_from: Literal["A", "B"]
    transform: str | Callable[..., Any]
    summary: str  # what trains under which mask: for model cards
    colour: str = "#666666"
    marker: str = "D"  # matplotlib's
    needs_match: bool = False  # whether it reads pi: one network for each way of matching and epoch of B
    needs_seed: bool = False  # whether it draws random numbers
    signs: Literal["own", "A"] = (
        "own"  # of the alive weights: their own, or those of the network that A's mask was found with
    )
    against: tuple[str, ...] = ()  # planned contrasts

    def __post_init__(self) -> None:
        if self.weights_from not in ("A", "B"):
            raise ValueError(f"weights_from: should be 'A' or 'B', found {self.weights_from!r}")
        if not callable(self.transform) and self.transform not in TRANSFORMS:
            known = ", ".join(map(repr, TRANSFORMS))
            raise ValueError(f"transform: should be one of {known} or a function, found {self.transform!r}")
        if self.transform == "permute" and not self.needs_match:
            raise ValueError("transform: 'permute' reads the permutation: set needs_match=True")
        if self.transform in DRAWN and not self.needs_seed:
            raise ValueError(f"transform: {self.transform!r} draws random numbers: set needs_seed=True")
        if self.signs not in ("own", "A"):
            raise ValueError(f"signs: should be 'own' or 'A', found {self.signs!r}")
        if not isinstance(self.against, tuple) or not all(isinstance(name, str) for name in self.against):
            raise TypeError(f"against: should be a tuple of arms' names, found {self.against!r:.60}")
        if len(set(self.against)) < len(self.against):
            raise ValueError(f"against: names an arm twice: {self.against!r:.60}")
        for name in ("summary", "colour", "marker"):
            if not isinstance(found := getattr(self, name), str):
                raise TypeError(f"{name}: should be a string, found {found!r:.60}")


ARMS: Registry[Arm] = Registry("arm", group="raylth.arms")
BUILT_IN = {  # in the order of tables and legends; colours of Okabe and Ito (2008)
    "lth": Arm(
        weights_from="A",
        transform="none",
        summary="A's early weights under A's mask: the lottery ticket",
        colour="#0072B2",
        marker="o",
        against=("permuted",),
    ),
    "permuted": Arm(
        weights_from="B",
        transform="permute",
        summary="B's early weights under A's mask, permuted to B",
        colour="#D55E00",
        marker="s",
        needs_match=True,
        against=("naive", "random_permutation"),
    ),
    "naive": Arm(
        weights_from="B",
        transform="none",
        summary="B's early weights under A's mask as it is",
        colour="#009E73",
        marker="^",
        against=("random",),
    ),
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
    "permuted_signs": Arm(
        weights_from="B",
        transform="permute",
        summary="B's early weights with A's signs, under A's mask, both permuted to B",
        colour="#E69F00",
        marker="p",
        needs_match=True,
        signs="A",
        against=("permuted", "signs"),
    ),
    "signs": Arm(
        weights_from="B",
        transform="none",
        summary="B's early weights with A's signs, under A's mask as it is",
        colour="#56B4E9",
        marker="<",
        signs="A",
        against=("naive",),
    ),
    "signs_only": Arm(
        weights_from="B",
        transform="shuffle",
        summary="B's early weights with A's signs, permuted to B, under A's mask, shuffled inside each layer",
        colour="#000000",
        marker="h",
        needs_match=True,
        needs_seed=True,
        signs="A",
        against=("random",),
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


def split_move(text: str) -> tuple[str | None, str] | None:
    """Return move and name of a network as analyses name it, such as ("pi^-1", "permuted"); None for what is no name."""
    found = re.fullmatch(r"\s*(?:(pi|pi\^-1)\(\s*([\w.:-]+)\s*\)|([\w.:-]+))\s*", text)
    return (found[1], found[2] or found[3]) if found else None


def rank(name: str) -> int:
    """Return an arm's place in tables and legends: those of the package first."""
    return list(BUILT_IN).index(name) if name in BUILT_IN else len(BUILT_IN)


def short_name(name: str) -> str:
    """Return an arm's name as legends and headings have it: an import path without its module."""
    return name.rpartition(":")[2]
