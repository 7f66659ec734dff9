"""Trainings that are stopped in their middle and continue: the same bits as without the stop."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from raylth.core.models import init_model
from raylth.core.training.loop import Recipe, train
from raylth.stages import Preempted, load_data, make_context, make_plan, run_plan, run_stage
from raylth.stages.resume import load_state
from raylth.store import Store
from tests.conftest import tiny_sweep
from tests.core.training.test_loop import random_split

RESNET = {"name": "resnet20", "width": 0.25, "num_classes": 10, "in_shape": (3, 8, 8)}


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("stop_at", "drop_last"),
    [((0, 1), False), ((1, 0), True), ((1, 2), True), ((2, 0), False), ((2, 3), True), ((2, 4), False)],
)
@pytest.mark.parametrize("update", [{"momentum": 0.9}, {"momentum": 0.0}, {"optimizer": "adamw"}])
def test_a_resumed_training_ends_with_the_same_bits(stop_at, update, drop_last):
    split = random_split((3, 8, 8), count=150)
    recipe = Recipe(3, lr=0.1, batch_size=32, warmup_epochs=1, drop_last=drop_last, **update)
    whole = init_model(0, **RESNET)
    losses = train(whole, split, recipe, seed=3, augment="flip_crop")
    stopped, states = init_model(0, **RESNET), []

    def stop(epochs, step, snapshot):
        if (epochs, step) == stop_at:
            states.append(snapshot())
            raise Stopped

    with pytest.raises(Stopped):
        train(stopped, split, recipe, seed=3, augment="flip_crop", on_step=stop)
    other = init_model(9, **RESNET)
    assert train(other, split, recipe, seed=3, augment="flip_crop", state=states[0]) == losses
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in whole.state_dict().items())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Dense networks and arms are trained by SGD, rounds of pruning by AdamW."""
    plan = make_plan(tiny_sweep(imp={"optimizer": {"name": "adamw"}, "lr": 0.001}))
    store = Store(tmp_path_factory.mktemp("reference"))
    assert not run_plan(plan, store).errors
    return plan, store


def same(first, second, keys):
    for key in keys:
        for name in first.files(key):
            np.testing.assert_array_equal(first.read(key, name), second.read(key, name))
    drop = lambda metrics: {name: value for name, value in metrics.items() if name != "seconds"}  # noqa: E731
    assert [drop(first.metrics(key)) for key in keys] == [drop(second.metrics(key)) for key in keys]


@functools.cache
def data_of():
    """The generator of MNIST-1D takes seconds."""
    return load_data(tiny_sweep().data)


def context_for(plan, store, **options):
    return make_context(store, data_of(), evaluate_every=plan.config.log.evaluate_every, **options)


def test_a_sweep_whose_every_training_is_stopped_again_and_again_ends_alike(reference, tmp_path):
    """Each process may take nine steps, then it is asked to stop: dozens of processes for one sweep."""
    plan, expected = reference
    store, stops = Store(tmp_path), 0

    def stopping(calls=[0]):  # noqa: B006
        calls[0] += 1
        return calls[0] % 9 == 0

    for stage in plan.stages:
        context = context_for(plan, store, stopping=stopping)
        while True:
            try:
                run_stage(stage, context)
                break
            except Preempted:
                stops += 1
    assert stops > 20
    same(expected, store, [key for stage in plan.stages for key in stage.produces])
    assert not any((store.root.path / "states").glob("*/*")), "what is finished needs no state"


def test_a_state_is_saved_every_n_epochs_and_only_the_rest_is_trained(reference, tmp_path):
    plan, expected = reference
    store, trained = Store(tmp_path), []
    stage = next(s for s in plan.stages if s.kind == "dense" and s.labels["network"] == "B")

    def die(key, epochs):
        trained.append(epochs)
        if len(trained) == 4:  # 0 on start, then one per epoch: in the third epoch's report
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, context_for(plan, store, state_every=2, progress=die))
    assert len(list((store.root.path / "states").glob("*/*/weights*"))) == 1
    trained.clear()
    run_stage(stage, context_for(plan, store, state_every=2, progress=lambda key, epochs: trained.append(epochs)))
    assert trained == [2, 1, 1], "two epochs were there, two are trained"
    same(expected, store, stage.produces)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest", "data", "checkpoint"])
def test_a_state_that_cannot_be_trusted_counts_as_none(reference, tmp_path, harm):
    plan, expected = reference
    store, calls = Store(tmp_path), []
    stage = next(s for s in plan.stages if s.kind == "dense" and s.labels["network"] == "B")

    def stopping():
        calls.append(1)
        return len(calls) == 10

    context = context_for(plan, store, stopping=stopping)
    with pytest.raises(Preempted, match="after 2 epochs and 2 steps"):
        run_stage(stage, context)
    (weights,) = (store.root.path / "states").glob("*/*/weights*")
    if harm == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif harm == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif harm == "remove":
        weights.unlink()
    elif harm == "manifest":
        (weights.parent / "MANIFEST.json").write_text("{")
    elif harm == "checkpoint":
        store.set_aside(stage.checkpoints["1"])
    if harm == "data":
        assert load_state(stage.key, replace(context, data_sha256="other data")) is None
    trained = []
    run_stage(stage, context_for(plan, store, progress=lambda key, epochs: trained.append(epochs)))
    assert trained == ([2, 1, 1] if harm == "data" else [0, 1, 1, 1, 1])
    same(expected, store, stage.produces)


@pytest.mark.parametrize("stop_at", [None, 10])
def test_a_state_that_cannot_be_saved_costs_the_training_nothing(reference, tmp_path, monkeypatch, stop_at):
    """The store refuses the first state; the training continues, the next state is saved, also at SIGTERM."""
    plan, expected = reference
    store, tried, calls = Store(tmp_path), [], []
    stage = next(s for s in plan.stages if s.kind == "dense" and s.labels["network"] == "B")
    real = Store.save_state

    def refuse_first(self, *state):
        tried.append(1)
        if len(tried) == 1:
            raise OSError("the bucket is away")
        real(self, *state)

    def stopping():
        calls.append(1)
        return len(calls) == stop_at

    monkeypatch.setattr(Store, "save_state", refuse_first)
    context = context_for(plan, store, state_every=1, stopping=stopping)
    if stop_at is None:
        run_stage(stage, context)
        same(expected, store, stage.produces)
    else:
        with pytest.raises(Preempted, match="2 steps; saved"):
            run_stage(stage, context)
        assert store.load_state(stage.key)[1]["epochs"] == 2
    assert len(tried) > 1
