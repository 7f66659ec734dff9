"""A sweep file's settings as closed, typed models: an unknown key is an error, and every field says unit and source.

Settings that decide results (the science) and settings that decide where and how fast they are computed (`storage`,
`resources`, `log`) stand in different models; only the first enter a stage's key.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from torch import nn

from raylth.arms import ARMS
from raylth.common.omit import without_later
from raylth.common.registry import UnknownName
from raylth.config.analyses import AnalysesConfig, Cells, ConnectConfig, MatchedLineConfig
from raylth.config.budget import BudgetConfig, PricesConfig
from raylth.config.data import DataConfig
from raylth.config.matching import MatchConfig
from raylth.config.model import ModelConfig
from raylth.config.pruning import MaskConfig
from raylth.config.resources import ResourcesConfig
from raylth.config.search import SearchConfig
from raylth.config.tracking import LogConfig
from raylth.config.training import DenseConfig, ImpConfig, SparseConfig
from raylth.config.types import AUTO, Count, Integer, Settings, is_place
from raylth.core.data import DATASETS
from raylth.core.matching.matcher import MATCHERS
from raylth.core.models import build_shapes
from raylth.core.pruning.finder import FINDERS, ITERATIVE, is_dynamic

__all__ = ["NOT_SCIENCE", "SeedsConfig", "SweepConfig"]

# Settings that decide no result: a run's name, a search's identity and a model card's table leave them out.
NOT_SCIENCE = {
    **dict.fromkeys(("storage", "resources", "budget", "prices", "search", "log"), True),
    "data": {"root", "download"},
}


class SeedsConfig(Settings):
    """Every random stream of a sweep is derived from these (SHA-256 of base and role)."""

    base: Integer = Field(0, ge=0, lt=2**63, description="Base seed of the sweep.")
    replicates: Count = Field(3, description="Independent pairs of networks A and B; the paper has 3.")


class SweepConfig(Settings):
    """One sweep file."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100, description="The sweep's name in results and folders."
    )
    storage: Annotated[str, AfterValidator(is_place)] = Field(
        "raylth-store",
        min_length=1,
        description="The store: a folder (also on NFS), s3://bucket/prefix or gs://bucket/prefix; shared by any "
        "number of sweeps. Credentials are read from the environment.",
    )
    seeds: SeedsConfig = SeedsConfig()
    data: DataConfig
    model: ModelConfig
    dense: DenseConfig = DenseConfig()
    mask: MaskConfig = MaskConfig()
    imp: ImpConfig = ImpConfig()
    match: MatchConfig = MatchConfig()
    connect: MatchedLineConfig | None = Field(None, description="Lines and barriers between pi(A) and B; null is none.")
    sparse: SparseConfig = SparseConfig()
    analyses: AnalysesConfig = AnalysesConfig()
    search: SearchConfig | None = Field(
        None, description="Search for each arm's best settings first; null: train with the settings of the file."
    )
    resources: ResourcesConfig = ResourcesConfig()
    budget: BudgetConfig | None = Field(None, description="Limit after which no further stage is started; null: none.")
    prices: PricesConfig | None = Field(None, description="What the cluster costs; null: costs are not counted.")
    log: LogConfig = LogConfig()

    def science(self) -> dict[str, Any]:
        """Return the settings that decide results as plain data: what names a run, and a search."""
        dumped = self.model_dump(mode="json", exclude=NOT_SCIENCE)  # type: ignore[arg-type]
        return without_later(dumped)

    @property
    def match_epochs(self) -> list[int]:
        """The epochs of B at which a permutation is found; T when the file does not say."""
        return self.match.epochs if self.match.epochs is not None else [self.dense.epochs]

    @property
    def augment(self) -> str:
        """The training augmentation, settled: "none", "flip_crop" or "resized_crop"."""
        asked = self.data.augment
        return DATASETS[self.data.name].augment if asked == AUTO else asked

    @property
    def cells(self) -> Cells:
        """What analyses may name."""
        sparse = self.sparse
        are_masks_provided = sparse.mask_from is not None
        has_rounds = not are_masks_provided and self.mask.finders[0] == ITERATIVE
        return Cells(
            sparse.sparsities,
            sparse.rewinds,
            sparse.arms,
            self.match_epochs,
            self.dense.epochs,
            are_masks_provided,
            has_rounds,
        )

    @property
    def measured(self) -> AnalysesConfig:
        """What `analyses` asks for with nothing left open; ValueError, with the key path, for what the sweep has not."""
        asked = self.analyses
        if self.sparse.mask_from is not None:
            for field, why in (("ensemble.sets", asked.ensemble), ("overlap.own", asked.overlap and asked.overlap.own)):
                if why:
                    raise ValueError(f"{field}: need A's own masks, and sparse.mask_from provides others")
            if asked.imp_line is not None:
                raise ValueError("imp_line: needs rounds of pruning, and sparse.mask_from replaces them")
        elif self.mask.finders[0] != ITERATIVE and asked.imp_line is not None:
            raise ValueError(f"imp_line: needs rounds of pruning, and mask.finder is {self.mask.finders[0]}")
        return asked.completed(self.cells, self.seeds.replicates)

    @model_validator(mode="after")
    def _consistent(self) -> "SweepConfig":
        total = self.dense.epochs
        if self.budget is not None and self.budget.usd is not None and self.prices is None:
            raise ValueError("budget.usd: needs prices, and the file has none")
        if self.sparse.mask_from is not None and self.mask.finder != ITERATIVE:
            raise ValueError("mask.finder: sparse.mask_from replaces it: remove one of them")
        self._check_structure()
        for rewind in self.sparse.rewinds:
            if rewind >= total:
                raise ValueError(f"sparse.rewinds: {rewind} is not below dense.epochs = {total}: no epoch would be left")
        for epoch in self.match_epochs:
            if epoch > total:
                raise ValueError(f"match.epochs: {epoch} is beyond dense.epochs = {total}")
        try:
            _ = self.measured
        except ValueError as error:
            raise ValueError(f"analyses.{error}") from error
        self._check_network()
        if self.match.augment and self.augment == "none":
            raise ValueError("match.augment: training images are not augmented (data.augment): remove it")
        num_train = (self.data.num_train or DATASETS[self.data.name].num_train) - self.data.holdout
        if self.match.samples is not None and self.match.samples > num_train:
            raise ValueError(f"match.samples: {self.match.samples} asked for, the training split has {num_train}")
        self._check_temperatures(num_train)
        self._check_matchers()
        for kind in ("dense", "imp", "sparse"):
            self._check_workers(kind, kind)
            self._check_resolution(kind)
        if any(is_dynamic(name) for name in self.mask.finders):
            self._check_workers("dense", "dynamic")
        return self

    def _check_temperatures(self, num_train: int) -> None:
        """Raise ValueError for temperatures on fewer samples than have two halves."""
        asked = self.analyses
        lines: dict[str, ConnectConfig | None] = {"connect": self.connect, "analyses.imp_line": asked.imp_line}
        lines |= {f"analyses.lines.{number}": line for number, line in enumerate(asked.lines)}
        lines["analyses.match_quality.line"] = asked.match_quality.line if asked.match_quality else None
        num_test = self.data.holdout or self.data.num_test or DATASETS[self.data.name].num_test
        for path, line in lines.items():
            if line is not None and line.temperature:
                for split, count in (("training", min(line.samples or num_train, num_train)), ("test", num_test)):
                    if count < 2:
                        raise ValueError(
                            f"{path}.temperature: needs at least 2 {split} samples, one to fit on; found {count}"
                        )

    def _check_matchers(self) -> None:
        """Raise ValueError for too few networks for a matcher of many at once."""
        many = [name for name in self.match.method if MATCHERS[name].match_many is not None]
        if not many or not any(ARMS[name].needs_match for name in self.sparse.arms):
            return
        replicates = {"seeds.replicates": self.seeds.replicates}
        if self.search is not None:
            replicates["search.replicates"] = self.search.replicates
            if self.search.final is not None:
                replicates["search.final.replicates"] = self.search.final.replicates
        for field, count in replicates.items():
            if count < 2:
                raise ValueError(
                    f"{field}: {count}, and match.method: {many[0]} matches three networks or more at once, A and B of all "
                    "replicates: should be 2 or more"
                )

    def _check_structure(self) -> None:
        """Raise ValueError for a pattern that the mask's finder cannot make."""
        structure = self.mask.structure.structure
        if structure.pattern == "unstructured":
            return
        if structure.runs and (many := [name for name in self.match.method if MATCHERS[name].match_many is not None]):
            raise ValueError(f"mask.structure: match.method {many[0]} knows no permutations that keep {structure}: remove it")
        for finder in self.mask.finders if self.sparse.mask_from is None else []:
            if not FINDERS[finder].has_structure:
                able = ", ".join(name for name in FINDERS if _has_structure(name))
                raise ValueError(
                    f"mask.structure: mask.finder {finder} makes unstructured masks only (with patterns: {able})"
                )
            if structure.pattern == "nm" and finder == ITERATIVE:
                raise ValueError(f"mask.structure: {structure} has one sparsity, and {finder} prunes in rounds: use oneshot")

    def _check_network(self) -> None:
        """Raise ValueError for a network that cannot be built for these data at one of its widths."""
        first = ("model.options", self.model.widths[0]) if self.model.options else ("model.name", 1.0)
        for field, width in (first, *(("model.widths", width) for width in self.model.widths)):
            try:
                self._shapes(width, self.data.in_shape)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from error

    def _shapes(self, width: float, in_shape: tuple[int, ...]) -> nn.Module:
        num_classes = DATASETS[self.data.name].num_classes
        return build_shapes(
            self.model.name, width=width, num_classes=num_classes, in_shape=in_shape, options=self.model.options
        )

    def _check_workers(self, section: str, kind: str) -> None:
        """Raise ValueError for a number of workers, of a kind trained as a section says, that batch norm cannot have."""
        unsynced, share = getattr(self, section).unsynced_workers, getattr(self.resources, kind)
        if unsynced == 1:
            raise ValueError(f"{section}.unsynced_workers: 1 worker sees whole batches: set it to 0")
        if unsynced not in (0, share.num_workers):
            raise ValueError(f"{section}.unsynced_workers: {unsynced}, and resources.{kind} has {share.num_workers} workers")
        if unsynced and share.min_workers is not None:
            raise ValueError(f"resources.{kind}.min_workers: {section}.unsynced_workers fixes their number")

    def _check_resolution(self, kind: str) -> None:
        """Raise ValueError for progressive resizing of what has one size, or of a network that depends on it."""
        settings, (_, *sides) = getattr(self, kind), self.data.in_shape
        first, (begin, end) = settings.first_resolution, settings.resolution_ramp
        if first is None:
            return
        if getattr(self.resources, kind).gpus == AUTO:  # what the first steps take is not what the last ones do
            raise ValueError(f"resources.{kind}.gpus: auto cannot be combined with {kind}.first_resolution: set a share")
        info = DATASETS[self.data.name]
        if not info.is_streamed or not 0 < first <= sides[0]:
            raise ValueError(f"{kind}.first_resolution: {first} is for images in files, of at least as many pixels")
        if not 0 <= begin < end <= 1:
            raise ValueError(f"{kind}.resolution_ramp: [{begin}, {end}] are not two increasing fractions from 0 to 1")
        found = []
        for side in (first, sides[0]):
            network = self._shapes(1.0, (3, side, side))
            found.append({name: tensor.shape for name, tensor in network.state_dict().items()})
        if found[0] != found[1]:
            raise ValueError(
                f"{kind}.first_resolution: {self.model.name} has different layers at {first} pixels than at {sides[0]}"
            )


def _has_structure(finder: str) -> bool:
    """Whether a finder makes masks with patterns; False for a package's that cannot be imported."""
    try:
        return bool(getattr(FINDERS[finder], "has_structure", False))
    except UnknownName:
        return False
