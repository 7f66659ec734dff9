"""How A's mask is found."""

from typing import Annotated

from pydantic import Field

from raylth.config.types import Settings, known
from raylth.core.pruning.finder import FINDERS, ITERATIVE, MaskFinder

__all__ = ["MaskConfig"]


class MaskConfig(Settings):
    """How A's mask is found."""

    finder: Annotated[str, known(FINDERS, MaskFinder, public="raylth.core.pruning.MaskFinder")] = Field(
        ITERATIVE,
        description="imp: iterative magnitude pruning, with the settings of the section `imp`; oneshot: the smallest "
        "magnitudes of the trained A, pruned at once; an installed package's entry point, or the import path"
        " package.module:object of a custom raylth.core.pruning.MaskFinder.",
    )
