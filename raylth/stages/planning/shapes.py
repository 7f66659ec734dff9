"""What a plan asks of a network without its values: how many weights can be pruned, and where its units are watched."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn

from raylth.config.matching import MatchConfig
from raylth.core.masks import prunable_names
from raylth.core.models import build_shapes
from raylth.core.permutation import derive_spec

__all__ = ["bytes_to_try", "can_be_built", "check_stream_site", "num_prunable", "shapes_of"]

COPIES = 6  # of a network's weights while it is tried


def shapes_of(model: dict[str, Any]) -> nn.Module:
    """Build the network that a stage's settings name without its values."""
    return build_shapes(**{**model, "in_shape": tuple(model["in_shape"])})


def bytes_to_try(model: dict[str, Any]) -> int:
    """Estimate the memory that trying a network takes: its weights in three copies, as they were, and a gradient."""
    held = [value for value in shapes_of(model).state_dict().values() if isinstance(value, torch.Tensor)]
    return COPIES * sum(tensor.numel() * tensor.element_size() for tensor in held)


def can_be_built(model: dict[str, Any]) -> bool:
    """Tell whether memory has room to try a network: where it only seems to, the system would end this process."""
    return bytes_to_try(model) <= psutil.virtual_memory().available


def num_prunable(model: dict[str, Any], *, prune_shortcuts: bool) -> int:
    """Count the weights that pruning may touch; ValueError, which starts with the setting's key path, where none can be."""
    return _num_prunable(json.dumps(model), prune_shortcuts)


@functools.lru_cache(maxsize=64)
def _num_prunable(text: str, prune_shortcuts: bool) -> int:
    """Count once for all replicates, whose networks differ in nothing but values."""
    model = json.loads(text)
    network = shapes_of(model)
    with _of(model):
        names = prunable_names(network, prune_shortcuts=prune_shortcuts)
    state = network.state_dict()
    return sum(state[name].numel() for name in names)


def check_stream_site(model: dict[str, Any], match: MatchConfig) -> None:
    """Raise ValueError unless the network has every group and site that `match.stream_site` names."""
    if not match.stream_site:
        return
    network = shapes_of(model)
    with _of(model):
        spec = derive_spec(network, torch.zeros(2, *model["in_shape"], device=next(network.parameters()).device))
    try:
        spec.watch(match.sites, match.stream_site)
    except ValueError as error:
        raise ValueError(f"match.{error}") from error


@contextmanager
def _of(model: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model.name: {model['name']}: {error}") from error
