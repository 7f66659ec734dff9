"""How A's mask is found, and which pattern it has."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from raylth.config.types import Count, Settings, known
from raylth.core.pruning.finder import FINDERS, ITERATIVE, MaskFinder
from raylth.core.pruning.structure import Structure

__all__ = ["MaskConfig", "StructureConfig"]


class StructureConfig(Settings):
    """The pattern of A's mask, which the permutations of units keep."""

    pattern: Literal["unstructured", "nm", "block", "fan_in", "units"] = Field(
        "unstructured",
        description="unstructured: any weights (paper); nm: n of m consecutive inputs (Zhou et al. 2021); block: blocks of "
        "rows outputs x columns inputs; fan_in: as many weights for each output of a layer (Lasby et al. 2024); units: whole "
        "units with all weights that write or read them (filters: Li et al. 2017).",
    )
    n: Count | None = Field(None, description="nm: weights that stay of each m; below m.")
    m: Count | None = Field(None, description="nm: consecutive inputs of a group, at each position of a kernel by itself.")
    rows: Count | None = Field(None, description="block: consecutive outputs.")
    columns: Count | None = Field(None, description="block: consecutive inputs, with their whole kernels.")

    @property
    def structure(self) -> Structure:
        """The pattern as the numerics have it."""
        return Structure(self.pattern, self.n, self.m, self.rows, self.columns)

    @model_validator(mode="after")
    def _is_pattern(self) -> Self:
        _ = self.structure
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class MaskConfig(Settings):
    """How A's mask is found, and which pattern it has."""

    finder: Annotated[str, known(FINDERS, MaskFinder, public="raylth.core.pruning.MaskFinder")] = Field(
        ITERATIVE,
        description="imp: iterative magnitude pruning, with the settings of the section `imp`; oneshot: the smallest "
        "magnitudes of the trained A, pruned at once; an installed package's entry point, or the import path"
        " package.module:object of a custom raylth.core.pruning.MaskFinder.",
    )
    structure: StructureConfig = Field(
        default_factory=StructureConfig, description="The pattern of the mask; permutations of units are those that keep it."
    )
