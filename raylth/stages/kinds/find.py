"""Stage `find`: a network, trained or not -> its mask at one sparsity, by any finder but iterative magnitude pruning."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from raylth.core.masks import Mask, as_mask, full_mask, mask_sparsity, model_sparsity, num_alive
from raylth.core.models import check_code
from raylth.core.modes import in_mode
from raylth.core.pruning import UNSTRUCTURED, keeps, landing_alive
from raylth.core.pruning.finder import FINDERS, FinderInputs, MaskFinder
from raylth.core.training.schedule import even_batch_size
from raylth.stages.arrays import state_arrays
from raylth.stages.context import Context
from raylth.stages.kind import StageKind
from raylth.stages.network_rows import network_rows
from raylth.stages.settings import FindSettings, StructureSettings
from raylth.stages.stage import Artefact, Stage
from raylth.stages.symmetry import structure_units
from raylth.stages.training import load_network

__all__ = ["KIND", "find"]

BATCH_SIZE = 500  # most samples of a batch that a finder is given


def find(stage: Stage[FindSettings], context: Context) -> dict[str, Artefact]:
    """Find the mask and check it: a bool tensor for each prunable weight, exactly as many alive as the sparsity asks for."""
    settings, finder = stage.settings, FINDERS[stage.settings.finder]
    if not isinstance(finder, MaskFinder):
        raise RuntimeError(f"mask finder {settings.finder!r} is not the same code here as where the sweep was planned")
    check_code("mask finder", settings.finder, finder.find, settings.code)
    network = load_network(settings.model, context, stage.parents["network"])
    everything = full_mask(network, prune_shortcuts=settings.prune_shortcuts)
    structure = settings.structure or StructureSettings(pattern=UNSTRUCTURED.pattern)
    units = structure_units(settings.model, network, context, structure)
    shapes = {name: alive.shape for name, alive in everything.items()}
    wanted = landing_alive(structure.structure, shapes, settings.sparsity, units)
    inputs = FinderInputs(
        {name: alive.clone() for name, alive in everything.items()},
        wanted,
        partial(_batches, settings.finder, settings.model.num_classes, context),
        settings.seed or 0,
        structure.structure,
        lambda: units,
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with in_mode(network, training=False):
        found = finder.find(network, inputs)
    mask = _checked(settings.finder, found, everything, wanted)
    if (violation := keeps(mask, structure.structure, units)) is not None:
        raise ValueError(f"mask finder {settings.finder}: {violation}")
    changed = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])]
    if changed:
        raise RuntimeError(f"mask finder {settings.finder}: it changed the network: {', '.join(changed[:3])}")
    metrics = {
        "epochs": 0,
        "mask_sparsity": mask_sparsity(mask),
        "model_sparsity": model_sparsity(network, mask),
    }
    return {stage.key: Artefact({"mask": state_arrays(mask)}, metrics)}


def _batches(name: str, num_classes: int, context: Context, per_class: int | None = None) -> Iterable[tuple[Tensor, Tensor]]:
    """Return the training samples, or `per_class` of each class as far as there are any, in batches without augmentation."""
    finder = FINDERS[name]
    if not isinstance(finder, MaskFinder) or not finder.reads_samples:
        raise ValueError(f"mask finder {name}: only one with reads_samples=True may read batches")
    count = len(context.train) if per_class is None else min(len(context.train), per_class * num_classes)
    samples = context.train if count == len(context.train) else context.train.take(count)
    return samples.batches(even_batch_size(count, BATCH_SIZE))


def _checked(name: str, found: object, everything: Mask, wanted: int) -> Mask:
    """Return a finder's mask on the network's device; TypeError or ValueError, one line, for what is none."""
    mask = as_mask(found, everything, f"mask finder {name}")
    kept = num_alive(mask)
    if kept != wanted:
        raise ValueError(f"mask finder {name}: {kept:,} weights are alive, and {wanted:,} are required (inputs.num_alive)")
    return mask


KIND = StageKind(
    name="find",
    settings=FindSettings,
    rank=25,
    compute=find,
    rows=network_rows,
    num_bytes=lambda stage, network: network.mask,
    feeds_arms=True,
)
