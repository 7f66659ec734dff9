"""How A's mask is found, and which pattern it has."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from raylth.config.types import Count, Real, Settings, one_or_more
from raylth.core.pruning.finder import FINDERS, ITERATIVE, DynamicFinder, MaskFinder
from raylth.core.pruning.structure import Structure

__all__ = ["MaskConfig", "StructureConfig", "UpdatesConfig"]

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

    finder: Annotated[str | list[str], one_or_more(FINDERS, MaskFinder, DynamicFinder, public=PUBLIC)] = Field(
        ITERATIVE,
        description="imp: iterative magnitude pruning, with the settings of the section `imp`; oneshot: the smallest "
        "magnitudes of the trained A, pruned at once; snip, grasp, synflow, erk: before training; gmp, set, rigl: while A is "
        "trained, with the settings of `dense`; an installed package's entry point, or the import path package.module:object "
        "of a custom raylth.core.pruning.MaskFinder or DynamicFinder. A list is an axis: arms are trained under the masks of "
        "each; analyses are of the first.",
    )
    structure: StructureConfig = Field(
        default_factory=StructureConfig, description="The pattern of the mask; permutations of units are those that keep it."
    )
    updates: UpdatesConfig = UpdatesConfig()

    @property
    def finders(self) -> list[str]:
        """The finders, of which analyses mean the first."""
        return [self.finder] if isinstance(self.finder, str) else self.finder
