"""How long the trainings ahead will hold GPUs and cores: by what this plan measured, else by counted operations."""

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from raylth.core.data import DATASETS
from raylth.core.models import init_model
from raylth.core.precision import Precision
from raylth.stages.graph import Graph
from raylth.stages.planning.plan import Plan
from raylth.stages.planning.shapes import can_be_built, shapes_of
from raylth.stages.settings import NetworkSettings, TrainingSettings
from raylth.store import Store

__all__ = ["RATES", "Hours", "Rate", "hours"]

Class = tuple[NetworkSettings, int, Precision]  # network, batch size, arithmetic: trainings that take the same time
BACKWARD = 3  # operations of a training step, in forward passes
RESNET50 = 2 * 4.09e9  # operations of its forward pass at 224 px


@dataclass(frozen=True)
class Rate:
    """Operations per second that a training reached, and where that was found."""

    operations: float
    source: str


PUBLISHED = "images/s of ResNet-50 that NVIDIA's DeepLearningExamples gives for one"
RATES = {  # precision -> of one GPU
    "bf16": Rate(2470 * BACKWARD * RESNET50, f"the 2,470 {PUBLISHED} A100 in mixed precision"),
    "tf32": Rate(938 * BACKWARD * RESNET50, f"the 938 {PUBLISHED} A100 in TF32"),
    "float32": Rate(367 * BACKWARD * RESNET50, f"the 367 {PUBLISHED} V100 in float32"),
}
CORE = Rate(481 * BACKWARD * 2 * 42.9e6 / 2, "the 481 images/s of ResNet-20 on two AMD EPYC cores (benchmarks/train_cpu.py)")


@dataclass(frozen=True)
class Hours:
    """What trainings that wait will hold, in hours, and how that is known."""

    gpus: float
    cpus: float  # cores of trainings without a GPU
    num_measured: int  # trainings whose like this plan has timed
    num_counted: int
    sources: tuple[str, ...]  # of those
    num_unknown: int = 0  # whose operations cannot be counted here; their hours are in none of these


def hours(plan: Plan, graph: Graph, store: Store, share_of: Callable[[str], tuple[int, float]]) -> Hours:
    """Estimate the hours of all trainings that wait; `share_of` maps a kind to its cores and GPUs (all workers').

    A network trained alone that is too small for a GPU takes several times what its operations say.
    """
    timed = _timed(plan, graph, store)
    gpus = cpus = 0.0
    measured, counted, unknown, sources = 0, 0, 0, dict[str, None]()
    for stage in plan.stages:
        if not isinstance(stage.settings, TrainingSettings) or graph.states[stage.key] != "waiting":
            continue
        cores, share = share_of(stage.kind)
        found = timed.get((_class(stage.settings), share > 0))
        if found is not None:
            measured += 1
            gpus += stage.epochs * found * share / 3600
            cpus += 0 if share else stage.epochs * found * cores / 3600
            continue
        if (operations := _operations(plan, stage.settings.model)) is None:
            unknown += 1
            continue
        counted += 1
        rate = RATES[stage.settings.recipe.precision] if share else CORE
        sources[rate.source] = None
        taken = stage.epochs * operations / rate.operations / 3600
        gpus += taken if share else 0
        cpus += 0 if share else taken
    return Hours(gpus, cpus, measured, counted, tuple(sources), unknown)


def _timed(plan: Plan, graph: Graph, store: Store) -> dict[tuple[Class, bool], float]:
    """Return the median seconds of an epoch by class and whether it was on a GPU, of this plan's trainings in the store."""
    found: dict[tuple[Class, bool], list[float]] = {}
    for stage in plan.stages:
        if isinstance(stage.settings, TrainingSettings) and graph.states[stage.key] == "done":
            metrics = store.metrics(stage.key)
            if metrics.get("seconds") and metrics.get("epochs"):
                place = (_class(stage.settings), metrics.get("device", "cpu") != "cpu")
                found.setdefault(place, []).append(metrics["seconds"] / metrics["epochs"])
    return {place: statistics.median(seconds) for place, seconds in found.items()}


def _class(settings: TrainingSettings) -> Class:
    return settings.model, settings.recipe.batch_size, settings.recipe.precision


def _operations(plan: Plan, model: NetworkSettings) -> float | None:
    """Count the operations of one epoch of training; None where they cannot be counted on this machine."""
    data = plan.config.data
    samples = data.num_train or DATASETS[data.name].num_train
    forward = _forward(model)
    return None if forward is None else BACKWARD * samples * forward


@functools.cache
def _forward(model: NetworkSettings) -> int | None:
    """Count the operations of one sample's forward pass (a multiplication and an addition are two)."""
    from torch.utils.flop_counter import FlopCounterMode  # a quarter of a second, which no worker needs

    shape = model.in_shape
    network = shapes_of(model).eval()
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty((1, *shape), device=next(network.parameters()).device))
    except Exception:  # of someone else's network, which may look at values: those of a meta tensor are not there
        if not can_be_built(model):
            return None
        network = init_model(0, **model.arguments()).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, *shape))
    return int(counter.get_total_flops())
