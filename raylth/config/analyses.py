"""Settings of what is measured on trained networks: lines, planes, ensembles, masks and matches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny

from raylth.analyses import ANALYSES, Analysis
from raylth.arms import ARMS, split_move
from raylth.common.registry import UnknownName
from raylth.config.plugin_settings import read_plugins
from raylth.config.types import NUMBER, Count, Epoch, Integer, Real, Settings, Sparsity, unique

__all__ = [
    "AnalysesConfig",
    "Cells",
    "ConnectConfig",
    "End",
    "EnsembleConfig",
    "LineConfig",
    "MatchQualityConfig",
    "MatchedLineConfig",
    "NetworksConfig",
    "OverlapConfig",
    "PlaneConfig",
    "parse_end",
]

PI, PI_INVERSE = "pi", "pi^-1"
BASES = ("A", "B", "imp")  # and every arm


@dataclass(frozen=True)
class Cells:
    """What a sweep has, for what is measured on it."""

    sparsities: Sequence[float]
    rewinds: Sequence[int]
    arms: Sequence[str]
    match_epochs: Sequence[int]
    total: int  # T
    are_masks_provided: bool = False
    has_rounds: bool = True  # whether A is pruned in rounds, so that there is a pruned and trained A

    def check_rounds(self, field: str, name: str) -> None:
        """Raise ValueError where A is not pruned in rounds."""
        if self.are_masks_provided:
            raise ValueError(f"{field}: {name} is A pruned in rounds, and sparse.mask_from takes their place")
        if not self.has_rounds:
            raise ValueError(f"{field}: {name} is A pruned in rounds, which only mask.finder: imp produces")

    def check_arm(self, field: str, name: str) -> None:
        """Raise ValueError for an arm that is not trained."""
        if name not in self.arms:
            raise ValueError(f"{field}: {name} is not among sparse.arms = {self.arms}")

    def check_match(self, field: str, name: str) -> None:
        """Raise ValueError unless A is matched to the trained B."""
        if self.total not in self.match_epochs:
            raise ValueError(f"{field}: {name} needs a match at T = {self.total}, which is not in match.epochs")


@dataclass(frozen=True)
class End:
    """A network that a line or a plane goes through, by name."""

    name: str
    base: str  # one of BASES, or an arm
    move: str | None  # pi, pi^-1 or None


def parse_end(text: str) -> End:
    """Read the name of a network, perhaps moved: A, pi(A), pi^-1(permuted); ValueError for what is none."""
    found = split_move(text)
    if found is None:
        raise _no_end(text)
    move, base = found
    if base not in BASES and ":" not in base:  # an import path is compared with sparse.arms, which are imported already
        try:
            ARMS[base]  # also those of entry points that nothing has loaded in this process
        except UnknownName as error:
            raise ValueError(str(error)) if error.__cause__ else _no_end(text) from error
    return End(f"{move}({base})" if move else base, base, move)


def _no_end(text: str) -> ValueError:
    return ValueError(f"{text!r} is none of {', '.join((*BASES, *ARMS))}, pi(X) and pi^-1(X)")


class ConnectConfig(Settings):
    """Lines between two networks: from pi(A) to B for every permutation, or from dense A to every round of IMP."""

    points: Integer = Field(11, ge=3, description="Equally spaced points, including both ends.")
    corrections: Annotated[list[Literal["plain", "reset", "repair"]], Field(min_length=1), AfterValidator(unique)] = Field(
        ["plain", "repair"],
        description="plain: weights interpolated, nothing else; reset: batch norm's statistics re-estimated; repair: "
        "every layer's mean and standard deviation set to the interpolation of the end points' (Jordan et "
        "al. 2023).",
    )
    samples: Count | None = Field(
        2000, description="Training samples (classes in proportion) for corrections and training loss; null is all."
    )
    temperature: bool = Field(
        False,
        description="Also measure the loss after dividing each point's logits by the temperature that gives the smallest, "
        "fitted on one half of the split for the other (Ito et al. 2025, arXiv 2510.08023); the error is the same.",
    )


SetName = Literal["imp", "lth", "permuted", "naive"]
SETS_OF_ARMS: tuple[SetName, ...] = ("lth", "permuted", "naive")


class CellConfig(Settings):
    """One cell of the sweep, whose networks are measured."""

    sparsity: Sparsity | None = Field(
        None, description="One of sparse.sparsities; null is 0.9 (the paper's) if listed, else the last."
    )
    rewind: Epoch | None = Field(None, description="One of sparse.rewinds; null is the last.")

    def in_cell(self, cells: Cells) -> Self:
        """Return the same with its cell filled in; ValueError, with the field, for one that the sweep does not have."""
        sparsity = self.sparsity or (0.9 if 0.9 in cells.sparsities else cells.sparsities[-1])
        rewind = cells.rewinds[-1] if self.rewind is None else self.rewind
        if sparsity not in cells.sparsities:
            raise ValueError(f"sparsity: {sparsity:g} is not in sparse.sparsities = {cells.sparsities}")
        if rewind not in cells.rewinds:
            raise ValueError(f"rewind: {rewind} is not in sparse.rewinds = {cells.rewinds}")
        return self.model_copy(update={"sparsity": sparsity, "rewind": rewind})


class EnsembleConfig(CellConfig):
    """Ensembles as in the paper's Table 1, one for each set, of networks of one cell."""

    members: Annotated[int, Field(ge=2), NUMBER] | None = Field(
        None, description="Networks of a set, at most seeds.replicates; null is 5 (the paper's) or as many as there are."
    )
    repeats: Count = Field(
        1,
        description="Sets of each kind, each with the mask (lth: also the initialisation) of another replicate's A, at most "
        "seeds.replicates; sets of the same networks are measured once.",
    )
    sets: Annotated[list[SetName], Field(min_length=1), AfterValidator(unique)] | None = Field(
        None,
        description="imp: the pruned A of each replicate; lth: one mask, one initialisation, an order of batches for each; "
        "permuted and naive: A's mask of the first replicate on the B of each. null is imp and all that sparse.arms has.",
    )

    def completed(self, cells: Cells, replicates: int) -> "EnsembleConfig":
        """Return the same with nothing left open; ValueError, with the field, for what the sweep does not have."""
        members = min(5, replicates) if self.members is None else self.members
        imp: list[SetName] = ["imp"] if cells.has_rounds else []
        sets: list[SetName] = self.sets or [*imp, *(name for name in SETS_OF_ARMS if name in cells.arms)]
        if members > replicates:
            raise ValueError(f"members: {members} asked for, and seeds.replicates is {replicates}")
        if self.repeats > replicates:
            raise ValueError(f"repeats: {self.repeats} asked for, and seeds.replicates is {replicates}")
        for name in sets:
            if name == "imp":
                cells.check_rounds("sets", name)
            else:
                cells.check_arm("sets", name)
        if "permuted" in sets:
            cells.check_match("sets", "permuted")
        return self.in_cell(cells).model_copy(update={"members": members, "sets": sets})


class _AmongNetworks(CellConfig):
    """What is measured between networks of one cell that are named."""

    def _named(self, cells: Cells, asked: Sequence[str] | None, usual: Sequence[str]) -> Sequence[str] | None:
        """Return what is asked for, else what is usual if the sweep has it, else None."""
        has_usual = (
            {"lth", "permuted"} <= set(cells.arms) and cells.total in cells.match_epochs and not cells.are_masks_provided
        )
        return asked or (usual if has_usual else None)

    def _checked(self, cells: Cells, field: str, names: Sequence[str]) -> Self:
        for name in names:
            if list(names).count(name) > 1:
                raise ValueError(f"{field}: {name} is listed twice")
            end = parse_end(name)
            if end.base == "imp":
                cells.check_rounds(field, name)
            elif end.base not in BASES:
                cells.check_arm(field, end.base)
            if end.move is not None or (end.base not in BASES and ARMS[end.base].needs_match):
                cells.check_match(field, name)
        return self.in_cell(cells)


EndName = Annotated[str, AfterValidator(lambda text: parse_end(text).name)]


class MatchedLineConfig(ConnectConfig):
    """Lines from pi(A) to B, for every permutation."""

    unmatched: bool = Field(False, description="Also measure the lines from A, without the permutation, to B.")


class LineConfig(ConnectConfig, _AmongNetworks):
    """A line between any two networks of one cell."""

    between: tuple[EndName, EndName] | None = Field(
        None,
        description="Two of A, B (dense, trained), imp (A pruned), and sparse.arms; pi(X) is X with its units moved as A's "
        "are to match B's, pi^-1(X) moved back. null is lth and pi^-1(permuted), where the sweep has both.",
    )

    def completed(self, cells: Cells) -> "LineConfig | None":
        """Return the same with nothing left open, None where the sweep lacks what null means; ValueError, with the field, for
        what the sweep does not have."""
        names = self._named(cells, self.between, ("lth", "pi^-1(permuted)"))
        return self._checked(cells, "between", names).model_copy(update={"between": names}) if names else None


class PlaneConfig(_AmongNetworks):
    """Loss and error over the plane through three networks of one cell (paper, Figure 4b)."""

    through: tuple[EndName, EndName, EndName] | None = Field(
        None,
        description="Three networks, named as in analyses.lines; the first is the origin. null is A, lth and "
        "pi^-1(permuted), where the sweep has them.",
    )
    resolution: Integer = Field(21, ge=2, le=501, description="Points on each side of the grid.")
    margin: Real = Field(
        0.2, ge=0, le=10, description="Margin of the grid around the three networks, as a fraction of their extent."
    )
    correction: Literal["plain", "reset"] = Field(
        "reset", description="plain: batch norm's statistics are interpolated like the weights; reset: they are re-estimated."
    )
    samples: Count | None = Field(
        2000,
        description="Training samples (classes in proportion) for reset and training loss; null is all. reset keeps "
        "one layer's activations of all of them in memory.",
    )

    def completed(self, cells: Cells) -> "PlaneConfig | None":
        """Return the same with nothing left open, None where the sweep lacks what null means; ValueError, with the field, for
        what the sweep does not have."""
        names = self._named(cells, self.through, ("A", "lth", "pi^-1(permuted)"))
        return self._checked(cells, "through", names).model_copy(update={"through": names}) if names else None


class NetworksConfig(_AmongNetworks):
    """Which networks an analysis of one's own is about; a subclass has the settings of its own besides."""

    networks: Annotated[list[EndName], Field(min_length=1, max_length=26)] = Field(
        ["lth", "permuted"], description="Networks of one cell, named as in analyses.lines."
    )

    def completed(self, cells: Cells) -> Self:
        """Return the same with its cell filled in; ValueError, with the field, for what the sweep does not have."""
        return self._checked(cells, "networks", self.networks)


class OverlapConfig(Settings):
    """Similarity of masks: A's, A's after the permutation, and B's own."""

    own: bool = Field(False, description="Also find B's own mask, by mask.finder: as many trainings as for A's.")


class MatchQualityConfig(Settings):
    """Quality of a match and the remaining barrier, by number of samples and by epoch; for the first of match.method."""

    samples: Annotated[list[Count], AfterValidator(unique)] = Field(
        [], description="Numbers of training samples to match on, one match for each; more than there are means all."
    )
    epochs: Annotated[list[Epoch], AfterValidator(unique)] = Field(
        [], description="Epochs of B to match at (paper: Table 15)."
    )
    line: ConnectConfig = Field(ConnectConfig(), description="The line from pi(A) to the trained B, for its barrier.")


class AnalysesConfig(Settings):
    """What is measured on trained networks."""

    ensemble: EnsembleConfig | None = Field(None, description="Ensembles and their diversity; null is none.")
    imp_line: ConnectConfig | None = Field(
        None, description="Lines and barriers from dense A to every round of IMP (paper, Figure 4a); null is none."
    )
    lines: list[LineConfig] = Field([], description="Lines between any two networks.")
    planes: list[PlaneConfig] = Field([], description="Planes through any three networks (paper, Figure 4b).")
    overlap: OverlapConfig | None = Field(None, description="Densities and overlaps of the masks, by layer; null is none.")
    match_quality: MatchQualityConfig | None = Field(
        None, description="Matches from fewer samples and earlier epochs; null is none."
    )

    custom: Annotated[
        dict[str, SerializeAsAny[NetworksConfig]],
        BeforeValidator(
            lambda raw: read_plugins(raw, ANALYSES, Analysis, NetworksConfig), json_schema_input_type=dict[str, Any]
        ),
    ] = Field(
        {},
        description="Custom analyses and their settings: the name of an installed package's entry point, or the import "
        "path package.module:object of a raylth.analyses.Analysis.",
    )

    def completed(self, cells: Cells, replicates: int) -> "AnalysesConfig":
        """Return the same with nothing left open; ValueError, with the key path, for what the sweep does not have."""
        found: dict[str, Any] = {}
        if self.ensemble is not None:
            with _below("ensemble"):
                ensemble = self.ensemble.completed(cells, replicates)
            found["ensemble"] = None if ensemble.members == 1 else ensemble
        for field in ("lines", "planes"):
            found[field] = []
            for number, asked in enumerate(getattr(self, field)):
                with _below(f"{field}.{number}"):
                    completed = asked.completed(cells)
                found[field] += [completed] if completed else []
        found["custom"] = {}
        for name, own in self.custom.items():
            with _below(f"custom.{name}"):
                found["custom"][name] = own.completed(cells)
        if self.overlap is not None:
            with _below("overlap"):
                cells.check_match("own", "pi(A)")
        for epoch in self.match_quality.epochs if self.match_quality else []:
            if epoch > cells.total:
                raise ValueError(f"match_quality.epochs: {epoch} is beyond dense.epochs = {cells.total}")
        return self.model_copy(update=found)


@contextmanager
def _below(path: str) -> Iterator[None]:
    """Put a key path before the field that an error names."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}.{error}") from error
