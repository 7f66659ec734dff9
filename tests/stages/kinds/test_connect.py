"""Lines and matches: what a correction must leave alone, and on which samples units are compared."""

import dataclasses

import pytest
import torch

from raylth.core.interpolate import barrier, middle_rise
from raylth.core.matching import match_activations
from raylth.core.permutation import derive_spec
from raylth.stages import load_data, make_context, make_plan, run_plan, run_stage
from raylth.stages.endpoints import Evaluator
from raylth.stages.matching import batches_of
from raylth.stages.stage import stage_key
from raylth.stages.training import load_network
from raylth.store import Store
from tests.conftest import tiny_sweep

SWEEP = {
    "data": {"name": "digits", "num_train": 256, "num_test": 90},
    "model": {"name": "resnet20", "widths": [0.25]},
    "dense": {"epochs": 6, "batch_size": 64},
    "match": {"epochs": [6]},
    "sparse": {"arms": ["permuted"], "sparsities": [0.5], "rewinds": [1]},
    "connect": {"points": 5, "corrections": ["plain", "reset", "repair"], "samples": 130},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    plan, store = make_plan(tiny_sweep(**SWEEP)), Store(tmp_path_factory.mktemp("store"))
    assert not run_plan(plan, store).errors
    return plan, store


def only(plan, kind):
    return next(stage for stage in plan.stages if stage.kind == kind)


def test_a_line_from_a_network_to_itself_is_flat_under_every_correction(finished):
    plan, store = finished
    between = only(plan, "connect")
    parents = {"a": between.parents["a"], "b": between.parents["a"]}
    stage = dataclasses.replace(between, parents=parents, key=stage_key("connect", between.settings, parents))
    run_stage(stage, make_context(store, load_data(plan.config.data)))
    rows = store.metrics(stage.key)["barriers"]
    assert {row["correction"] for row in rows} == {"plain", "reset", "repair"}
    for row in rows:
        name = (row["correction"], row["split"])
        assert row["error_barrier"] <= 0.01, name
        assert row["loss_barrier"] <= 1e-4, name
        assert abs(row["loss_mid"]) <= 1e-4, name
    plain = {row["split"]: row for row in rows if row["correction"] == "plain"}
    line = store.metrics(stage.key)["line"]
    for row in rows:
        assert row["plain_loss_a"] == row["plain_loss_b"] == plain[row["split"]]["plain_loss_a"]
    ends = {point["correction"]: point["loss"] for point in line if point["alpha"] == 0 and point["split"] == "train"}
    assert ends["plain"] == plain["train"]["plain_loss_a"]
    assert ends["reset"] != pytest.approx(ends["plain"], rel=1e-5), "the statistics are those of the samples"


def test_the_middle_has_a_sign_and_the_barrier_none():
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert barrier([1.0, 0.9, 0.5, 2.3, 2.0], alphas) == pytest.approx(0.55)
    assert middle_rise([1.0, 0.9, 0.5, 2.3, 2.0], alphas) == pytest.approx(-1.0)
    assert barrier([1.0, 0.0, 1.0], [0.0, 0.5, 1.0]) == 0.0
    assert middle_rise([1.0, 1.0], [0.0, 1.0]) is None
    with pytest.raises(ValueError, match="finite"):
        middle_rise([1.0, float("nan"), 1.0], [0.0, 0.5, 1.0])


def test_units_are_compared_on_augmented_images_where_that_is_asked_for(finished):
    plan, store = finished
    plain = only(plan, "match")
    asked = tiny_sweep(
        **{**SWEEP, "data": {**SWEEP["data"], "augment": "flip_crop"}, "match": {"epochs": [6], "augment": True}}
    )
    stage = only(make_plan(asked), "match")
    assert stage.settings.augment == "flip_crop"
    context = make_context(store, load_data(plan.config.data))
    images, again, others = (torch.cat([x for x, _ in batches_of(s.settings, context)]) for s in (stage, stage, plain))
    assert torch.equal(images, again), "they follow from the seed"
    assert images.shape == others.shape
    assert torch.equal(others, context.train.x)
    assert not torch.equal(images.flatten().sort().values, others.flatten().sort().values)
    a, b = (load_network(plain.settings.model, context, plain.parents[role]) for role in "ab")
    spec = derive_spec(a, context.train.probe(2))
    own, moved = (match_activations(a, b, spec, found.split(64)).objective for found in (others, images))
    assert own != moved
    bare = {"match": {"epochs": [6], "augment": True}}
    with pytest.raises(ValueError, match=r"match.augment: training images are not augmented"):
        tiny_sweep(**{**SWEEP, **bare})


def test_no_statistics_are_those_of_a_few_left_over_samples(finished):
    """256 samples in batches of at most 255, as REPAIR and learned matching see them: none of a single sample."""
    plan, store = finished
    context = make_context(store, load_data(plan.config.data))
    assert [len(x) for x in Evaluator(context, 256).inputs(255)] == [170, 86]
    settings = dataclasses.replace(only(plan, "match").settings, samples=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raylth.stages.matching.BATCH_SIZE", 255)
        assert [len(x) for x, _ in batches_of(settings, context)] == [170, 86]
