"""The kinds of stage, a module each, named as in the results' column `stage`. `kind_of` is the one way to them."""

from collections.abc import Mapping
from typing import Any

from raylth.stages.kind import StageKind
from raylth.stages.kinds import (
    analysis,
    connect,
    dense,
    dynamic,
    ensemble,
    find,
    imp,
    mask,
    match,
    overlap,
    plane,
    sparse,
    universe,
)
from raylth.stages.stage import Stage

__all__ = ["KINDS", "kind_of", "read_stage"]

KINDS: dict[str, StageKind[Any]] = {
    module.KIND.name: module.KIND
    for module in (dense, dynamic, imp, find, mask, universe, match, sparse, connect, plane, overlap, ensemble, analysis)
}


def kind_of(name: str) -> StageKind[Any]:
    """Return a kind of stage by its name; KeyError, with the known ones, for any other."""
    if name not in KINDS:
        raise KeyError(f"unknown kind of stage {name!r} (known: {', '.join(KINDS)})")
    return KINDS[name]


def read_stage(data: Mapping[str, Any]) -> Stage:
    """Return the stage of which `Stage.to_dict` returned the data."""
    return Stage(**{**data, "settings": kind_of(data["kind"]).settings.read(data["settings"])})
