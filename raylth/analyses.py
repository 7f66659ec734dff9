"""Settings of what is measured on trained networks: lines between two of them, and ensembles."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from raylth.values import NUMBER, Count, Epoch, Integer, Settings, Sparsity, unique

__all__ = ["AnalysesConfig", "ConnectConfig", "EnsembleConfig"]


class ConnectConfig(Settings):
    """Lines between two networks: from pi(A) to B for every permutation, or from dense A to every round of IMP."""

    points: Integer = Field(11, ge=3, description="Equally spaced points, the ends included.")
    corrections: Annotated[list[Literal["plain", "reset", "repair"]], Field(min_length=1), AfterValidator(unique)] = Field(
        ["plain", "repair"],
        description="plain: weights interpolated, nothing else; reset: batch norm's statistics measured anew; repair: "
        "every layer's mean and deviation set to the interpolation of the end points' (Jordan et al. 2023).",
    )
    samples: Count | None = Field(
        2000, description="Training samples, from the first, for corrections and training loss; null is all."
    )


SetName = Literal["imp", "lth", "permuted", "naive"]
SETS_OF_ARMS: tuple[SetName, ...] = ("lth", "permuted", "naive")


class EnsembleConfig(Settings):
    """Ensembles as in the paper's Table 1, one for each set, of networks of one cell."""

    sparsity: Sparsity | None = Field(None, description="One of sparse.sparsities; null is 0.9 (the paper's), else the last.")
    rewind: Epoch | None = Field(None, description="One of sparse.rewinds; null is the last.")
    members: Annotated[int, Field(ge=2), NUMBER] | None = Field(
        None, description="Networks of a set, at most seeds.replicates; null is 5 (the paper's) or as many as there are."
    )
    sets: Annotated[list[SetName], Field(min_length=1), AfterValidator(unique)] | None = Field(
        None,
        description="imp: the pruned A of each replicate; lth: one mask, one initialisation, an order of batches for each; "
        "permuted and naive: A's mask of the first replicate on the B of each. null is imp and all that sparse.arms has.",
    )

    def completed(
        self, sparsities: Sequence[float], rewinds: Sequence[int], arms: Sequence[str], replicates: int
    ) -> "EnsembleConfig":
        """Return the same with nothing left open; ValueError, with the field, for what the sweep does not have."""
        sparsity = self.sparsity or (0.9 if 0.9 in sparsities else sparsities[-1])
        rewind = rewinds[-1] if self.rewind is None else self.rewind
        members = min(5, replicates) if self.members is None else self.members
        sets: list[SetName] = self.sets or ["imp", *(name for name in SETS_OF_ARMS if name in arms)]
        if members > replicates:
            raise ValueError(f"members: {members} asked for, and seeds.replicates is {replicates}")
        if sparsity not in sparsities:
            raise ValueError(f"sparsity: {sparsity:g} is none of sparse.sparsities = {sparsities}")
        if rewind not in rewinds:
            raise ValueError(f"rewind: {rewind} is none of sparse.rewinds = {rewinds}")
        for name in sets:
            if name != "imp" and name not in arms:
                raise ValueError(f"sets: {name} is not among sparse.arms = {arms}")
        return self.model_copy(update={"sparsity": sparsity, "rewind": rewind, "members": members, "sets": sets})


class AnalysesConfig(Settings):
    """What is measured on trained networks."""

    ensemble: EnsembleConfig | None = Field(None, description="Ensembles and their diversity; null is none.")
    imp_line: ConnectConfig | None = Field(
        None, description="Lines and barriers from dense A to every round of IMP (paper, Figure 4a); null is none."
    )
