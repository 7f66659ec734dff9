"""How networks are trained: dense, in rounds of pruning, and sparse."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raylth.arms import ARMS, Arm
from raylth.config.types import AUTO, Count, Epoch, Folder, Integer, Rate, Real, Settings, Sparsity, known, unique
from raylth.core.training.recipe import Interval, OptimizerName, Recipe

__all__ = ["DenseConfig", "ImpConfig", "OptimizerConfig", "SparseConfig", "TrainingConfig"]


ArmName = Annotated[str, known(ARMS, Arm)]


Beta = Annotated[Real, Field(ge=0, lt=1)]


class OptimizerConfig(Settings):
    """Which update trains; the learning rate and weight decay stand beside it."""

    name: OptimizerName = Field("sgd", description="sgd with momentum, or adamw (Loshchilov and Hutter, 2019).")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="adamw: decay rates of the gradient's two moments.")
    eps: Real = Field(1e-8, gt=0, description="adamw: added to the root of the second moment.")
    neuron_scaling: bool = Field(
        False,
        description="imp and sparse: multiply the gradients of each neuron's incoming weights by sqrt(1 - s_i) / "
        "sqrt(1 - s_mean), where s_i is the neuron's sparsity and s_mean its mean over the layer (SparseOpt: Adnan et al., "
        "2026). adamw normalises gradients by their own scale, so there it acts through eps alone.",
    )


class TrainingConfig(Settings):
    """Fields that dense, IMP and sparse training share."""

    batch_size: Count = Field(128, description="Samples per step (paper: 128 on CIFAR).")
    drop_last: bool = Field(
        True,
        description="Drop the samples of an epoch that do not fill a batch (different ones in each epoch), unless they "
        "are its only batch: batch norm's statistics would be those of a few samples.",
    )
    optimizer: OptimizerConfig = Field(
        default_factory=OptimizerConfig,
        description="The optimizer. Each of dense, imp and sparse has its own.",
    )
    momentum: Real = Field(0.9, ge=0, lt=1, description="SGD momentum.")
    weight_decay: Real = Field(
        5e-4, ge=0, lt=1, description="Weight decay on every parameter: L2 in sgd, decoupled from the gradient in adamw."
    )
    warmup_epochs: Integer = Field(0, ge=0, description="Epochs of linear warm-up at the start of the schedule.")
    lr_interval: Interval = Field(
        "step", description="How often the learning rate changes: at every step, or once an epoch (the published code)."
    )
    decay_every: Integer = Field(
        0,
        ge=0,
        description="Epochs between two decays of the learning rate by decay_factor (paper: 30 on ImageNet); 0: a cosine.",
    )
    decay_factor: Real = Field(
        0.1, gt=0, le=1, description="With decay_every: factor by which the learning rate is multiplied."
    )
    label_smoothing: Real = Field(0.0, ge=0, lt=1, description="Label smoothing of the training loss.")
    precision: Literal["float32", "tf32", "bf16", "auto"] = Field(
        "float32",
        description="Arithmetic of convolutions and matrix products: float32, tf32 (GPU) or bf16; everything else is "
        "float32, and so is every evaluation. auto: without a GPU bf16 where the processor of the machine that "
        "starts the run has native bf16 instructions (workers without them are slow), else float32; a resumed run keeps it, "
        "and the results' column precision records it.",
    )

    first_resolution: Count | None = Field(
        None,
        description="Progressive resizing, which is not in the paper: initial side length of the training crops in "
        "pixels, which grows to data.resolution. null: always data.resolution.",
    )
    resolution_ramp: tuple[Real, Real] = Field(
        (0.74, 0.86),
        description="With first_resolution: the fractions of the epochs between which the crops grow (FFCV's training of"
        " ResNet-50: epochs 65 to 76 of 88).",
    )
    unsynced_workers: Integer = Field(
        0,
        ge=0,
        description="Number of workers (resources) whose batch norms each see only their part of a batch; 0: batch norm "
        "sees the whole batch, however many workers there are.",
    )

    def recipe(self, epochs: int, lr: float, **schedule: Any) -> Recipe:
        """Return the recipe of one training of `epochs` epochs; `precision: auto` must be settled."""
        assert self.precision != AUTO, "planning settles it"
        shared: dict[str, Any] = {name: getattr(self, name) for name in TrainingConfig.model_fields if name != "optimizer"}
        update = self.optimizer
        if update.neuron_scaling:
            shared["neuron_scaling"] = True
        if update.name == "adamw":
            shared |= {"optimizer": update.name, "betas": update.betas, "eps": update.eps, "momentum": 0.0}
        return Recipe(epochs=epochs, lr=lr, **(shared | schedule))

    @model_validator(mode="after")
    def _names_what_applies(self) -> Self:
        """By values: a manifest has all fields."""
        if self.optimizer.name == "adamw" and self.momentum != TrainingConfig.model_fields["momentum"].default:
            raise ValueError("momentum is sgd's: adamw has optimizer.betas")
        if self.optimizer.name == "sgd" and self.optimizer != OptimizerConfig(neuron_scaling=self.optimizer.neuron_scaling):
            raise ValueError("optimizer.betas and optimizer.eps are adamw's: sgd has momentum")
        return self


class DenseConfig(TrainingConfig):
    """Dense training of A and B."""

    epochs: Count = Field(200, description="T: epochs of dense training (paper: 200 on CIFAR).")
    lr: Rate = Field(0.08, description="Peak learning rate (paper: 0.08 on CIFAR).")

    @model_validator(mode="after")
    def _has_no_mask(self) -> Self:
        if self.optimizer.neuron_scaling:
            raise ValueError("optimizer.neuron_scaling is of networks with a mask, in imp and sparse: remove it")
        return self


class ImpConfig(TrainingConfig):
    """Iterative magnitude pruning with fine-tuning (the published code runs momentum 0 and weight decay 0)."""

    epochs_per_round: Count = Field(50, description="Epochs of fine-tuning after each pruning (paper: 50).")
    lr: Rate = Field(0.01, description="Peak learning rate of a round (paper: 0.01).")
    prune_fraction: Real = Field(
        0.2, gt=0, lt=1, description="Fraction of the alive weights that a round prunes (paper: 0.2)."
    )
    prune_shortcuts: bool = Field(False, description="Also prune residual shortcut convolutions (paper: no).")


class SparseConfig(TrainingConfig):
    """Sparse training: one network per arm, sparsity and rewind point."""

    arms: Annotated[list[ArmName], AfterValidator(unique)] = Field(
        ["lth", "naive", "permuted"],
        description="Which weights and which mask: lth, permuted, naive, random_permutation, random, permuted_signs, signs, "
        "signs_only, an installed package's entry point, or the import path package.module:object of a custom "
        "raylth.arms.Arm.",
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
        "fresh", description="fresh: lr on a new cosine over T - k epochs; rewound: the dense schedule continues from k."
    )
    mask_from: Folder | None = Field(
        None,
        description="File with A's mask, used instead of mask.finder: masks alone, or a network pruned by "
        "torch.nn.utils.prune, which is then A. {replicate}, {sparsity} and {width} in the path are filled "
        "in.",
    )
