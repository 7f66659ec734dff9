"""Settings of analyses that measure the networks of all replicates together."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field

from raylth.config.analyses import Cells, NetworksConfig, parse_end
from raylth.config.types import known
from raylth.core.matching.matcher import MATCHERS, Matcher

__all__ = ["AcrossConfig"]


def _matches_many(name: str) -> str:
    if MATCHERS[name].match_many is None:
        raise ValueError(f"{name} matches pairs of networks: should be a matcher of all at once, such as c2m3")
    return name


class AcrossConfig(NetworksConfig):
    """Which networks an analysis across replicates is about, and how those of all replicates get one order of units."""

    method: Annotated[str, known(MATCHERS, Matcher, public="raylth.core.matching.Matcher"), AfterValidator(_matches_many)] = (
        Field("c2m3", description="Matcher of all dense networks at once, by whose permutations the networks are moved.")
    )

    def completed(self, cells: Cells) -> Self:
        """Return the same with its cell filled in; ValueError, with the field, for what the sweep does not have."""
        for name in self.networks:
            end = parse_end(name)
            if end.move is not None:
                raise ValueError(f"networks: {name}: all are moved to one order of units: should be {end.base}")
        return super().completed(cells)
