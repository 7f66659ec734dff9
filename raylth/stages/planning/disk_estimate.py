"""What a sweep will write and hold, in bytes, from its plan alone: shapes are enough."""

import math
import os
import shutil
from dataclasses import dataclass

import numpy as np

from raylth.core.data import DATASETS
from raylth.core.masks import prunable_names
from raylth.stages.graph import Graph
from raylth.stages.kind import NetworkBytes
from raylth.stages.kinds import kind_of
from raylth.stages.planning.plan import Plan
from raylth.stages.planning.shapes import shapes_of
from raylth.stages.settings import NetworkSettings
from raylth.stages.stage import Stage
from raylth.store import DiskLocation, Location

__all__ = ["Forecast", "forecast", "free_bytes", "in_units"]

MANIFEST = 1100  # bytes of one without its curve
PER_EPOCH = 130  # bytes of a curve's point in the manifest
PER_TENSOR = 110  # bytes of a tensor's entry in a file's header


@dataclass(frozen=True)
class Forecast:
    """Bytes that the stages ahead will publish, by kind; and what is held while they run."""

    published: dict[str, int]
    states: int  # of trainings that run at the same time, in the store until they end
    dataset: int  # in the object store of every node
    checkpoint: int  # the largest network, in the object store while it is read

    @property
    def storage(self) -> int:
        """The most that the store grows by."""
        return sum(self.published.values()) + self.states


def forecast(plan: Plan, graph: Graph, running: int) -> Forecast:
    """Forecast what the stages that wait take, with `running` trainings at a time."""
    sizes: dict[NetworkSettings, NetworkBytes] = {}
    published: dict[str, int] = {}
    largest = 0
    for stage in plan.stages:
        published.setdefault(stage.kind, 0)
        if graph.states[stage.key] != "waiting":
            continue
        model = stage.settings.model
        if model not in sizes:
            sizes[model] = _sizes(model)
        published[stage.kind] += _bytes_of(stage, sizes[model])
        largest = max(largest, sizes[model].weights)
    trainings = sum(stage.epochs > 0 and graph.states[stage.key] == "waiting" for stage in plan.stages)
    states = 4 * largest * min(trainings, running)  # weights and momentum, the state before and the next one
    return Forecast(published, states, _dataset_bytes(plan), largest)


def free_bytes(location: Location) -> int | None:
    """Return what is free where a store lies; None for a bucket, which has no end."""
    if not isinstance(location, DiskLocation):
        return None
    folder = location.path.absolute()
    while not os.path.exists(folder):  # False, too, for a name that is too long for a file system
        folder = folder.parent
    return shutil.disk_usage(folder).free


def in_units(count: int) -> str:
    """Write a number of bytes for people."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"


def _bytes_of(stage: Stage, network: NetworkBytes) -> int:
    published = kind_of(stage.kind).num_bytes(stage, network)
    return published + MANIFEST * len(stage.produces) + PER_EPOCH * stage.epochs


def _sizes(model: NetworkSettings) -> NetworkBytes:
    network = shapes_of(model)
    state = network.state_dict()
    prunable = [state[name] for name in prunable_names(network)]
    return NetworkBytes(
        weights=sum(tensor.numel() * tensor.element_size() + PER_TENSOR for tensor in state.values()),
        mask=sum(-(-tensor.numel() // 8) + PER_TENSOR for tensor in prunable),
        units=sum(tensor.shape[0] for tensor in prunable),
    )


def _dataset_bytes(plan: Plan) -> int:
    data, info = plan.config.data, DATASETS[plan.config.data.name]
    samples = (data.num_train or info.num_train) + (data.num_test or info.num_test)
    if info.is_streamed:
        return samples * 8  # of the files, only the labels
    return samples * (math.prod(info.in_shape) * np.dtype(info.dtype).itemsize + 8)
