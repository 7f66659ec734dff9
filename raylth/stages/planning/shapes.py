"""What a plan asks of a network without its values: how many weights can be pruned, and where its units are watched."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import nn

from raylth.config.matching import MatchConfig
from raylth.core.masks import prunable_names
from raylth.core.models import build_shapes
from raylth.core.permutation import derive_spec
from raylth.stages.settings import NetworkSettings

__all__ = ["bytes_to_try", "can_be_built", "check_stream_site", "num_prunable", "shapes_of"]

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
