"""What a sweep starts from, tried on a first batch: its data, its networks and their symmetry."""

import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylth.core.data import DATASETS, DataError, Dataset, Split
from raylth.core.masks import full_mask
from raylth.core.models import init_model
from raylth.core.modes import in_mode
from raylth.core.permutation import UnknownOperation, derive_spec
from raylth.stages.planning.plan import Plan
from raylth.stages.planning.shapes import can_be_built
from raylth.stages.settings import NetworkSettings, TrainingSettings

__all__ = ["describe_data", "describe_networks"]

MOST = 32  # samples of the batch: images of ImageNet take 100 MB of memory each
SHOWN = 5  # names in a line


def describe_data(plan: Plan, dataset: Dataset) -> Iterator[str]:
    """Yield what a sweep trains and evaluates on, a line for each split."""
    data = plan.config.data
    num_classes = DATASETS[data.name].num_classes
    evaluated = "held out" if data.holdout else "test"
    for name, split in zip(("training", evaluated), dataset.splits("cpu"), strict=True):
        counts = np.bincount(split.y.numpy(), minlength=num_classes)
        yield (
            f"{name}: {len(split):,} samples of shape {split.in_shape}; {num_classes:,} classes, {counts.min():,} to "
            f"{counts.max():,} samples each"
        )


def describe_networks(plan: Plan, dataset: Dataset) -> Iterator[str]:
    """Yield what each of a sweep's networks is: its weights, its symmetry, and its loss and gradient on a batch.

    The batch is the first of a training, at most 32 samples of it; in float32 on a CPU, at the initialisation. Raises
    ValueError, one line that starts with a setting's key path, for a network that raises, and for a loss or a
    gradient that is not finite.
    """
    train, _ = dataset.splits("cpu")
    trainings: dict[NetworkSettings, TrainingSettings] = {}
    for stage in plan.stages:
        if isinstance(stage.settings, TrainingSettings):
            trainings.setdefault(stage.settings.model, stage.settings)
    for model, settings in trainings.items():
        named = f"{model.name}, width {model.width:g}"
        if not can_be_built(model):
            yield f"{named}: not tried, this machine has too little memory for it"
            continue
        network = init_model(settings.seed, **model.arguments())
        yield f"{named}: {_weights(network, prune_shortcuts=plan.config.imp.prune_shortcuts)}"
        x, y = _batch(train, settings)
        yield f"  symmetry: {_symmetry(network, x)}"
        yield f"  first batch: {_step(network, x, y, model.num_classes, f'model.name: {named}')}"


def _batch(train: Split, settings: TrainingSettings) -> tuple[Tensor, Tensor]:
    recipe = settings.recipe
    split = train.resized(recipe.first_resolution) if recipe.first_resolution else train
    size = min(recipe.batch_size, MOST, len(split))
    try:
        return next(split.epoch([settings.seed], 0, size, augment=settings.augment, stop=1))
    except StopIteration:
        raise DataError(f"data.name: {settings.data.name}: its training split yields no batch") from None


def _weights(network: nn.Module, *, prune_shortcuts: bool) -> str:
    masked = full_mask(network, prune_shortcuts=prune_shortcuts)
    total = sum(parameter.numel() for parameter in network.parameters())
    prunable = sum(alive.numel() for alive in masked.values())
    return f"{total:,} parameters, {prunable:,} of them prunable, in {len(masked)} layers"


def _symmetry(network: nn.Module, x: Tensor) -> str:
    with warnings.catch_warnings(), in_mode(network, training=False):
        warnings.simplefilter("ignore")
        try:
            spec = derive_spec(network, x[:2])
        except (UnknownOperation, ValueError) as error:
            return f"cannot be derived: {' '.join(str(error).split())}"
    if not spec.groups:
        return "none: no unit can change its place"
    groups = [f"{group.name} {group.size}" for group in spec.groups.values()]
    more = f" and {len(groups) - SHOWN} more" if len(groups) > SHOWN else ""
    units = sum(group.size for group in spec.groups.values())
    return f"{len(groups)} groups of {units:,} units ({', '.join(groups[:SHOWN])}{more})"


def _range(x: Tensor) -> str:
    return f"{x.min().item():.3g} to {x.max().item():.3g}"


def _step(network: nn.Module, x: Tensor, y: Tensor, num_classes: int, where: str) -> str:
    network.to(memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)
    try:
        with in_mode(network, training=True):
            loss = F.cross_entropy(network(x), y)
            loss.backward()
    except Exception as error:  # whatever a network of one's own raises
        raise ValueError(f"{where}: {type(error).__name__} on a first batch: {' '.join(str(error).split())}") from error
    if not loss.isfinite():
        raise ValueError(f"{where}: its loss on a first batch is {loss.item():g}; inputs are {_range(x)}")
    without, size = [], 0.0
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            without.append(name)
        elif not parameter.grad.isfinite().all():
            raise ValueError(f"{where}: its gradient of {name!r} is not finite on a first batch; inputs are {_range(x)}")
        else:
            size += parameter.grad.square().sum().item()
    lost = f"; no gradient for {', '.join(without[:SHOWN])}{' and more' if len(without) > SHOWN else ''}" if without else ""
    return (
        f"loss {loss.item():.3f} nats (a guess has {math.log(num_classes):.3f}), gradient norm {math.sqrt(size):.3g}, "
        f"{len(y)} samples{lost}"
    )
