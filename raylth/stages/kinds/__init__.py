"""The kinds of stage, a module each, named as in the results' column `stage`. `kind_of` is the one way to them."""

from raylth.stages.kind import StageKind
from raylth.stages.kinds import analysis, connect, dense, ensemble, find, imp, mask, match, overlap, plane, sparse

__all__ = ["KINDS", "kind_of"]

KINDS: dict[str, StageKind] = {
    module.KIND.name: module.KIND
    for module in (dense, imp, find, mask, match, sparse, connect, plane, overlap, ensemble, analysis)
}


def kind_of(name: str) -> StageKind:
    """Return a kind of stage by its name; KeyError, with the known ones, for any other."""
    if name not in KINDS:
        raise KeyError(f"unknown kind of stage {name!r} (known: {', '.join(KINDS)})")
    return KINDS[name]
