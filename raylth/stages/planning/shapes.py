"""What a plan asks of a network without its values: how many weights can be pruned, and where its units are watched."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import nn

from raylth.config.matching import MatchConfig
from raylth.core.masks import full_mask, prunable_names
from raylth.core.models import build_shapes, init_model
from raylth.core.permutation import derive_spec
from raylth.core.pruning import UnitGroup, landing_alive, nearest_alive, removable_units
from raylth.stages.settings import NetworkSettings, StructureSettings

__all__ = [
    "bytes_to_try",
    "can_be_built",
    "check_stream_site",
    "landing",
    "nearest",
    "num_prunable",
    "planned_units",
    "shapes_of",
]

COPIES = 6  # of a network's weights while it is tried


def shapes_of(model: NetworkSettings) -> nn.Module:
    """Build a network without its values."""
    return build_shapes(**model.arguments())


def bytes_to_try(model: NetworkSettings) -> int:
    """Estimate the memory that trying a network takes: its weights in three copies, as they were, and a gradient."""
    held = [value for value in shapes_of(model).state_dict().values() if isinstance(value, torch.Tensor)]
    return COPIES * sum(tensor.numel() * tensor.element_size() for tensor in held)


def can_be_built(model: NetworkSettings) -> bool:
    """Tell whether memory has room to try a network: where it only seems to, the system would end this process."""
    return bytes_to_try(model) <= psutil.virtual_memory().available


@functools.lru_cache(maxsize=64)  # all replicates have networks that differ in nothing but values
def num_prunable(model: NetworkSettings, *, prune_shortcuts: bool) -> int:
    """Count the weights that pruning may touch; ValueError, which starts with the setting's key path, where none can be."""
    network = shapes_of(model)
    with _of(model):
        names = prunable_names(network, prune_shortcuts=prune_shortcuts)
    state = network.state_dict()
    return sum(state[name].numel() for name in names)


@functools.lru_cache(maxsize=64)
def _mask_shapes(model: NetworkSettings, *, prune_shortcuts: bool) -> dict[str, tuple[int, ...]]:
    network = shapes_of(model)
    with _of(model):
        names = prunable_names(network, prune_shortcuts=prune_shortcuts)
    state = network.state_dict()
    return {name: tuple(state[name].shape) for name in names}


@functools.lru_cache(maxsize=64)
def planned_units(model: NetworkSettings, structure: StructureSettings) -> tuple[UnitGroup, ...]:
    """Return the units that a structure may remove; ValueError, which starts with the setting's key path, without any."""
    if structure.pattern != "units":
        return ()
    network = init_model(0, **model.arguments())  # which units are mixed is tried with values
    x = torch.zeros(2, *model.in_shape)
    with _of(model):
        masked = full_mask(network, prune_shortcuts=structure.prune_shortcuts)
        found = removable_units(network, derive_spec(network, x), x, masked)
    if not found:
        raise ValueError(f"mask.structure: {structure.structure}: {model.name} has none that can be removed")
    return found


@functools.lru_cache(maxsize=1024)
def landing(model: NetworkSettings, structure: StructureSettings, sparsity: float) -> int:
    """Return how many weights stay at a sparsity under a structure; ValueError for one that it cannot have."""
    shapes = _mask_shapes(model, prune_shortcuts=structure.prune_shortcuts)
    try:
        return landing_alive(structure.structure, shapes, sparsity, planned_units(model, structure))
    except ValueError as error:
        raise ValueError(f"sparse.sparsities: {error}") from error


@functools.lru_cache(maxsize=1024)
def nearest(model: NetworkSettings, structure: StructureSettings, wanted: int) -> int:
    """Return the number of alive weights nearest to one that a structure can have."""
    shapes = _mask_shapes(model, prune_shortcuts=structure.prune_shortcuts)
    return nearest_alive(structure.structure, shapes, wanted, planned_units(model, structure))


def check_stream_site(model: NetworkSettings, match: MatchConfig) -> None:
    """Raise ValueError unless the network has every group and site that `match.stream_site` names."""
    if not match.stream_site:
        return
    network = shapes_of(model)
    with _of(model):
        spec = derive_spec(network, torch.zeros(2, *model.in_shape, device=next(network.parameters()).device))
    try:
        spec.watch(match.sites, match.stream_site)
    except ValueError as error:
        raise ValueError(f"match.{error}") from error


@contextmanager
def _of(model: NetworkSettings) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model.name: {model.name}: {error}") from error
