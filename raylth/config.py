"""A sweep file's settings as closed, typed models: an unknown key is an error, and every field says unit and source.

Settings that decide results (the science) and settings that decide where and how fast they come about (`storage`,
`resources`, `log`) stand in different models; only the first enter a stage's key.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from raylth.analyses import AnalysesConfig, Cells, MatchedLineConfig
from raylth.arms import ARMS, Arm
from raylth.core.data import DATASETS
from raylth.core.models import build_shapes
from raylth.core.precision import Precision, fastest_precision
from raylth.core.recipe import Interval, Recipe
from raylth.costs import BudgetConfig, PricesConfig
from raylth.logs import LogConfig
from raylth.resources import ResourcesConfig
from raylth.searching import SearchConfig
from raylth.subjects import DataConfig, ModelConfig
from raylth.values import (
    AUTO,
    Count,
    Epoch,
    Folder,
    Integer,
    Rate,
    Real,
    Settings,
    Sparsity,
    is_place,
    known,
    unique,
)

__all__ = [
    "DataConfig",
    "DenseConfig",
    "ImpConfig",
    "LogConfig",
    "MatchConfig",
    "ModelConfig",
    "SeedsConfig",
    "SparseConfig",
    "SweepConfig",
]


def _is_arm(name: str) -> str:
    """Refuse what an import path names that is no arm."""
    if not isinstance(ARMS[name], Arm):
        raise ValueError(f"{name!r} is a {type(ARMS[name]).__name__}, not a raylth.arms.Arm")
    return name


ArmName = Annotated[str, known(ARMS), AfterValidator(_is_arm)]


class SeedsConfig(Settings):
    """Every random stream of a sweep is derived from these (SHA-256 of base and role)."""

    base: Integer = Field(0, ge=0, lt=2**63, description="Base seed of the sweep.")
    replicates: Count = Field(3, description="Independent pairs of networks A and B; the paper has 3.")


Asked = Literal["float32", "tf32", "bf16", "auto"]


def _settled(precision: Asked) -> Precision:
    """Settle `auto` when a file is read: the arithmetic moves numbers, so keys and results hold what it was."""
    return fastest_precision() if precision == "auto" else precision


class OptimizerConfig(Settings):
    """SGD; fields that dense, IMP and sparse training share."""

    batch_size: Count = Field(128, description="Samples per step (paper: 128 on CIFAR).")
    drop_last: bool = Field(
        True,
        description="Leave out the samples of an epoch that do not fill a batch (others in each epoch), unless they are all: "
        "batch norm's statistics would be those of a few samples.",
    )
    momentum: Real = Field(0.9, ge=0, lt=1, description="SGD momentum.")
    weight_decay: Real = Field(5e-4, ge=0, lt=1, description="L2 weight decay on every parameter.")
    warmup_epochs: Integer = Field(0, ge=0, description="Epochs of linear warm-up at the start of the schedule.")
    lr_interval: Interval = Field(
        "step", description="How often the learning rate changes: at every step, or once an epoch (the published code)."
    )
    decay_every: Integer = Field(
        0,
        ge=0,
        description="Epochs after which the learning rate falls, again and again (paper: 30 on ImageNet); 0: a cosine.",
    )
    decay_factor: Real = Field(0.1, gt=0, le=1, description="With decay_every: what part of the rate is left each time.")
    label_smoothing: Real = Field(0.0, ge=0, lt=1, description="Label smoothing of the training loss.")
    precision: Annotated[Asked, AfterValidator(_settled)] = Field(
        "float32",
        description="Arithmetic of convolutions and matrix products: float32, tf32 (GPU) or bf16; everything else is "
        "float32, and so is every evaluation. auto: without a GPU bf16 where the processor of the machine that reads "
        "this multiplies in it (workers that do not are slow), else float32; the results' column precision says which.",
    )

    first_resolution: Count | None = Field(
        None,
        description="Progressive resizing, which the paper does not do: side of the training crops at first, in pixels, "
        "which grows to data.resolution. null: always data.resolution.",
    )
    resolution_ramp: tuple[Real, Real] = Field(
        (0.74, 0.86),
        description="With first_resolution: the shares of the epochs between which the crops grow (FFCV's own training of "
        "ResNet-50: 65 to 76 of 88 epochs).",
    )
    unsynced_workers: Integer = Field(
        0,
        ge=0,
        description="Number of workers (resources) whose batch norms each see their own part of a batch; 0: they see the "
        "whole batch, however many workers there are.",
    )

    def recipe(self, epochs: int, lr: float, **schedule: Any) -> Recipe:
        """Return what `core.train` needs for one training of `epochs` epochs."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in OptimizerConfig.model_fields}
        return Recipe(epochs=epochs, lr=lr, **shared, **schedule)


class DenseConfig(OptimizerConfig):
    """Dense training of A and B."""

    epochs: Count = Field(200, description="T: epochs of dense training (paper: 200 on CIFAR).")
    lr: Rate = Field(0.08, description="Peak learning rate (paper: 0.08 on CIFAR).")


class ImpConfig(OptimizerConfig):
    """Iterative magnitude pruning with fine-tuning (the published code runs momentum 0 and weight decay 0)."""

    epochs_per_round: Count = Field(50, description="Epochs of fine-tuning after each pruning (paper: 50).")
    lr: Rate = Field(0.01, description="Peak learning rate of a round (paper: 0.01).")
    prune_fraction: Real = Field(0.2, gt=0, lt=1, description="Share of the alive weights a round prunes (paper: 0.2).")
    prune_shortcuts: bool = Field(False, description="Also prune residual shortcut convolutions (paper: no).")


MatchMethod = Literal["activation", "weight", "learned", "identity", "random"]


def _listed(value: object) -> object:
    """Take a single name for a list of one."""
    return [value] if isinstance(value, str) else value


class MatchConfig(Settings):
    """Matching A to B: which permutation carries A's mask to B."""

    method: Annotated[
        list[MatchMethod],
        Field(min_length=1),
        AfterValidator(unique),
        BeforeValidator(_listed, json_schema_input_type=MatchMethod | list[MatchMethod]),
    ] = Field(
        ["activation"],
        description="How the permutation is found; several give one permuted arm each. activation: the paper's; weight: Git "
        "Re-Basin, Algorithm 1; learned: its Algorithm 3; identity and random are controls.",
    )
    epochs: Annotated[list[Epoch], AfterValidator(unique)] | None = Field(
        None, min_length=1, description="Epochs of B at which the permutation is found; null is [T]. Below T: Table 15."
    )
    samples: Count | None = Field(None, description="Training samples to match on (classes in proportion); null is all.")
    augment: bool = Field(
        False,
        description="Match on training images that are augmented as in training, each once (the published code), by "
        "activation or learned; else as they are.",
    )
    sites: Literal["post_activation", "pre_activation"] = Field(
        "post_activation", description="Where activation matching compares units."
    )
    stream_site: dict[str, Integer] = Field(
        {},
        description="Group -> which of its activations to watch: -1 the last (default), -2 the last but one. The paper "
        "watches ResNet-20's last stream (layer3.0.conv2) at -2.",
    )
    learned_epochs: Count = Field(5, description="Passes of learned matching over the samples.")
    learned_lr: Rate = Field(0.05, description="Adam's rate in learned matching, relative to each tensor's deviation.")


class SparseConfig(OptimizerConfig):
    """Sparse training: one network per arm, sparsity and rewind point."""

    arms: Annotated[list[ArmName], AfterValidator(unique)] = Field(
        ["lth", "naive", "permuted"],
        description="Which weights and which mask: lth, permuted, naive, random_permutation, random, one of an installed "
        "package's entry points, or the import path package.module:object of a raylth.arms.Arm of one's own.",
    )
    sparsities: Annotated[list[Sparsity], Field(min_length=1), AfterValidator(unique)] = Field(
        [0.8, 0.9, 0.95, 0.97], description="Target mask sparsities (paper: 0.80, 0.90, 0.95, 0.97)."
    )
    rewinds: Annotated[list[Epoch], Field(min_length=1), AfterValidator(unique)] = Field(
        [0],
        description="k: completed epochs of dense training at which the weights are taken; 0 is the initialisation.",
    )
    lr: Rate = Field(0.02, description="Peak learning rate of a fresh schedule (paper: 0.02).")
    schedule: Literal["fresh", "rewound"] = Field(
        "fresh", description="fresh: lr on a new cosine over T - k epochs; rewound: the dense schedule goes on from k."
    )
    mask_from: Folder | None = Field(
        None,
        description="File with A's mask, instead of IMP: masks alone, or a network pruned by torch.nn.utils.prune, which is "
        "then A. {replicate}, {sparsity} and {width} in it are filled in.",
    )


class SweepConfig(Settings):
    """One sweep file."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100, description="The sweep's name in results and folders."
    )
    storage: Annotated[str, AfterValidator(is_place)] = Field(
        "raylth-store",
        min_length=1,
        description="Where the store is: a folder (also on NFS), s3://bucket/prefix or gs://bucket/prefix; shared by any "
        "number of sweeps. Credentials come from the environment.",
    )
    seeds: SeedsConfig = SeedsConfig()
    data: DataConfig
    model: ModelConfig
    dense: DenseConfig = DenseConfig()
    imp: ImpConfig = ImpConfig()
    match: MatchConfig = MatchConfig()
    connect: MatchedLineConfig | None = Field(None, description="Lines and barriers between pi(A) and B; null is none.")
    sparse: SparseConfig = SparseConfig()
    analyses: AnalysesConfig = AnalysesConfig()
    search: SearchConfig | None = Field(None, description="Look for each arm's best settings first; null: train as written.")
    resources: ResourcesConfig = ResourcesConfig()
    budget: BudgetConfig | None = Field(None, description="What the sweep may use before no stage is started any more.")
    prices: PricesConfig | None = Field(None, description="What the cluster costs; null: no money is counted.")
    log: LogConfig = LogConfig()

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
        brought = sparse.mask_from is not None
        return Cells(sparse.sparsities, sparse.rewinds, sparse.arms, self.match_epochs, self.dense.epochs, brought)

    @property
    def measured(self) -> AnalysesConfig:
        """What `analyses` asks for with nothing left open; ValueError, with the key path, for what the sweep has not."""
        asked = self.analyses
        if self.sparse.mask_from is not None:
            for field, why in (("ensemble.sets", asked.ensemble), ("overlap.own", asked.overlap and asked.overlap.own)):
                if why:
                    raise ValueError(f"{field}: need A's own masks, and sparse.mask_from brings others")
        return asked.completed(self.cells, self.seeds.replicates)

    @model_validator(mode="before")
    @classmethod
    def _auto_precision_is_float32_on_a_gpu(cls, raw: Any) -> Any:
        """Settle precision: auto with a GPU, of which the machine that reads the file may know nothing."""
        resources = raw.get("resources") if isinstance(raw, dict) else None
        if not isinstance(resources, dict):
            return raw
        settled = dict(raw)
        for kind in ("dense", "imp", "sparse"):
            settings, share = raw.get(kind), resources.get(kind)
            is_auto = isinstance(settings, dict) and settings.get("precision") == AUTO
            if is_auto and isinstance(share, dict) and share.get("gpus", 0) not in (0, "0"):
                settled[kind] = {**settings, "precision": "float32"}
        return settled

    @model_validator(mode="after")
    def _consistent(self) -> "SweepConfig":
        total = self.dense.epochs
        if self.budget is not None and self.budget.usd is not None and self.prices is None:
            raise ValueError("budget.usd: needs prices, and the file has none")
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
        info = DATASETS[self.data.name]
        for field, widths in (("model.name", [1.0]), ("model.widths", self.model.widths)):
            for width in widths:
                try:
                    build_shapes(self.model.name, width=width, num_classes=info.num_classes, in_shape=self.data.in_shape)
                except ValueError as error:
                    raise ValueError(f"{field}: {error}") from error
        if self.match.augment and self.augment == "none":
            raise ValueError("match.augment: training images are not augmented (data.augment): leave it out")
        num_train = (self.data.num_train or info.num_train) - self.data.holdout
        if self.match.samples is not None and self.match.samples > num_train:
            raise ValueError(f"match.samples: {self.match.samples} asked for, the training split has {num_train}")
        for kind in ("dense", "imp", "sparse"):
            self._check_workers(kind)
            self._check_resolution(kind)
        return self

    def _check_workers(self, kind: str) -> None:
        """Raise ValueError for a number of workers that batch norm cannot have."""
        unsynced, share = getattr(self, kind).unsynced_workers, getattr(self.resources, kind)
        if unsynced == 1:
            raise ValueError(f"{kind}.unsynced_workers: 1 worker sees whole batches: leave it at 0")
        if unsynced not in (0, share.num_workers):
            raise ValueError(f"{kind}.unsynced_workers: {unsynced}, and resources.{kind} has {share.num_workers} workers")
        if unsynced and share.min_workers is not None:
            raise ValueError(f"resources.{kind}.min_workers: {kind}.unsynced_workers fixes their number")

    def _check_resolution(self, kind: str) -> None:
        """Raise ValueError for progressive resizing of what has one size, or of a network that depends on it."""
        settings, (_, *sides) = getattr(self, kind), self.data.in_shape
        first, (begin, end) = settings.first_resolution, settings.resolution_ramp
        if first is None:
            return
        if getattr(self.resources, kind).gpus == AUTO:  # what the first steps take is not what the last ones do
            raise ValueError(f"resources.{kind}.gpus: auto cannot be with {kind}.first_resolution: set a share")
        info = DATASETS[self.data.name]
        if not info.is_streamed or not 0 < first <= sides[0]:
            raise ValueError(f"{kind}.first_resolution: {first} is for images in files, of at least as many pixels")
        if not 0 <= begin < end <= 1:
            raise ValueError(f"{kind}.resolution_ramp: [{begin}, {end}] are not two growing shares from 0 to 1")
        found = []
        for side in (first, sides[0]):
            network = build_shapes(self.model.name, width=1.0, num_classes=info.num_classes, in_shape=(3, side, side))
            found.append({name: tensor.shape for name, tensor in network.state_dict().items()})
        if found[0] != found[1]:
            raise ValueError(
                f"{kind}.first_resolution: {self.model.name} has other layers at {first} pixels than at {sides[0]}"
            )
