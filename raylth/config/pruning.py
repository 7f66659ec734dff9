"""How A's mask is found."""

from typing import Annotated

from pydantic import Field

from raylth.config.types import Count, Real, Settings, one_or_more
from raylth.core.pruning.finder import FINDERS, ITERATIVE, DynamicFinder, MaskFinder

__all__ = ["MaskConfig", "UpdatesConfig"]

PUBLIC = "raylth.core.pruning.MaskFinder or DynamicFinder"


class UpdatesConfig(Settings):
    """When the mask changes, and by how much, for finders that change it while A is trained."""

    every: Count | None = Field(
        None, description="Steps between two changes; null: the finder's own (gmp and rigl 100, set those of an epoch)."
    )
    until: Real | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of A's training in which the mask changes; null: the finder's own (gmp and rigl 0.75, set 1).",
    )
    fraction: Real | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of each layer's weights that a change replaces (set), that the first change replaces (rigl); "
        "null: the finder's own (0.3).",
    )


class MaskConfig(Settings):
    """How A's mask is found."""

    finder: Annotated[str | list[str], one_or_more(FINDERS, MaskFinder, DynamicFinder, public=PUBLIC)] = Field(
        ITERATIVE,
        description="imp: iterative magnitude pruning, with the settings of the section `imp`; oneshot: the smallest "
        "magnitudes of the trained A, pruned at once; snip, grasp, synflow, erk: before training; gmp, set, rigl: while A is "
        "trained, with the settings of `dense`; an installed package's entry point, or the import path package.module:object "
        "of a custom raylth.core.pruning.MaskFinder or DynamicFinder. A list is an axis: arms are trained under the masks of "
        "each; analyses are of the first.",
    )
    updates: UpdatesConfig = UpdatesConfig()

    @property
    def finders(self) -> list[str]:
        """The finders, of which analyses mean the first."""
        return [self.finder] if isinstance(self.finder, str) else self.finder
