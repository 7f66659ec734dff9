"""The hours ahead: operations against published counts, and a plan's own timings before any count."""

import pytest

from raylth.stages import hours, make_plan, scan
from raylth.stages.planning.time_estimate import CORE, RATES, RESNET50, _forward
from raylth.stages.settings import NetworkSettings
from raylth.store import Store
from tests.conftest import tiny_sweep


def test_operations_are_those_of_the_literature():
    """4.09 billion multiplications for ResNet-50 at 224 px (He et al. 2016 say 3.8 without the first version's strides)."""
    resnet50 = NetworkSettings(name="resnet50", width=1.0, init="own", num_classes=1000, in_shape=(3, 224, 224))
    assert _forward(resnet50) == pytest.approx(RESNET50, rel=1e-3)
    mlp = NetworkSettings(name="mlp", width=1.0, init="own", num_classes=10, in_shape=(40,))
    assert _forward(mlp) == 2 * (40 * 128 + 2 * 128 * 128 + 128 * 10)


def test_what_is_not_timed_is_counted(tmp_path):
    plan, store = make_plan(tiny_sweep(model={"widths": [1.0]})), Store(tmp_path)
    graph = scan(plan, store)
    epochs = sum(stage.epochs for stage in plan.stages)
    operations = 3 * 512 * epochs * 2 * (40 * 128 + 2 * 128 * 128 + 128 * 10)
    found = hours(plan, graph, store, lambda kind: (1, 0.0))
    assert found.cpus == pytest.approx(operations / CORE.operations / 3600)
    assert (found.gpus, found.num_measured) == (0, 0)
    assert found.num_counted == sum(stage.epochs > 0 for stage in plan.stages)
    on_gpus = hours(plan, graph, store, lambda kind: (1, 0.5))
    assert on_gpus.gpus == pytest.approx(operations / RATES["float32"].operations / 3600)
    assert on_gpus.sources == (RATES["float32"].source,)


def test_what_the_plan_has_timed_counts_for_its_like(tmp_path):
    """Two of four dense networks are done, in 40 s and 80 s of 4 epochs on a GPU: the others are like them."""
    plan, store = make_plan(tiny_sweep(seeds={"replicates": 2})), Store(tmp_path)
    graph = scan(plan, store)
    dense = [stage for stage in plan.stages if stage.kind == "dense"]
    for stage, seconds in zip(dense[:2], (40.0, 80.0), strict=True):
        metrics = {"seconds": seconds, "epochs": 4, "device": "a GPU"}
        store.publish(stage.key, kind="dense", tensors={}, metrics=metrics)
        graph.finish(stage.key)
    left = sum(stage.epochs for stage in plan.stages if graph.states[stage.key] == "waiting")
    found = hours(plan, graph, store, lambda kind: (1, 0.5))
    assert (found.num_counted, found.sources) == (0, ())
    assert found.gpus == pytest.approx(0.5 * left * 15 / 3600)
    on_cores = hours(plan, graph, store, lambda kind: (2, 0.0))
    assert on_cores.num_measured == 0, "a GPU's time tells nothing of cores"
