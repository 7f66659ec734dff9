"""How a training runs, and where one stands between two steps."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch import Tensor

from raylth.common.omit import omit_defaults
from raylth.core.precision import Precision

__all__ = ["Interval", "OptimizerName", "Recipe", "TrainState"]

Interval = Literal["step", "epoch"]
OptimizerName = Literal["sgd", "adamw"]


@dataclass(frozen=True)
class Recipe:
    """How one training runs; together with weights, data, seed and mask it decides the result."""

    epochs: int  # trained now
    lr: float  # peak of the cosine
    batch_size: int = 128
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # on every parameter; AdamW's is apart from the gradient
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    drop_last: bool = True  # leave out the samples of an epoch that do not fill a batch, unless they are all
    precision: Precision = "float32"  # of convolutions and matrix products
    lr_interval: Interval = "step"  # how often the rate changes: at every "step", or once an "epoch"
    decay_every: int = 0  # epochs after which the rate falls, again and again; 0: a cosine
    decay_factor: float = 0.1  # to this part of itself
    schedule_epochs: int | None = None  # length of the whole cosine; None: `epochs`
    schedule_start: int = 0  # epochs of the schedule that already lie behind
    first_resolution: int | None = None  # side of the first epochs' crops; None: the split's
    resolution_ramp: tuple[float, float] = (0.74, 0.86)  # shares of the schedule between which they grow to the split's
    optimizer: OptimizerName = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW, by which its moments forget
    eps: float = 1e-8  # of AdamW
    unsynced_workers: int = 0  # processes whose batch norms see their own part of a batch each; 0: they see all of it
    neuron_scaling: bool = False  # multiply gradients by `neuron_factors` of the mask

    def settings(self) -> dict[str, Any]:
        """Return the fields as plain data, as keys hold them; fields added later are omitted at their defaults."""
        return omit_defaults(asdict(self), DEFAULTS, LATER)


DEFAULTS = {each.name: each.default for each in fields(Recipe)}
LATER = {  # field -> those that mean nothing while it has its default
    "lr_interval": (),
    "precision": (),
    "decay_every": ("decay_factor",),
    "first_resolution": ("resolution_ramp",),
    "unsynced_workers": (),
    "optimizer": ("betas", "eps"),
    "neuron_scaling": (),
}


@dataclass(frozen=True)
class TrainState:
    """Where a training stands between two steps: all that another process needs to continue with the same bits.

    Order, flips, crops and learning rate follow from seed, epoch and step, so they are not part of it.
    """

    epochs: int  # completed in this training
    step: int  # steps taken of the next one
    losses: list[float]  # of the completed epochs
    loss_sum: float  # over the samples of the next one
    weights: dict[str, Tensor]  # parameters and buffers
    momentum: dict[str, Tensor]  # the optimizer's state: for SGD each parameter's momentum buffer
