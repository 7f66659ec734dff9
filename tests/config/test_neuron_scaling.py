"""`optimizer.neuron_scaling` in sweep files: where it may stand, and what it changes."""

import pytest

from raylth.common.omit import without_later
from raylth.stages import make_plan
from tests.conftest import tiny_sweep

ON = {"optimizer": {"neuron_scaling": True}}


def keys(config):
    return {(stage.kind, stage.name): stage.key for stage in make_plan(config).stages}


@pytest.mark.parametrize("section", ["sparse", "imp"])
@pytest.mark.parametrize("update", [{}, {"name": "adamw"}])
def test_only_what_trains_by_it_has_another_recipe_and_key(section, update):
    before = keys(tiny_sweep(**{section: {"optimizer": update}}))
    config = tiny_sweep(**{section: {"optimizer": {**update, "neuron_scaling": True}}})
    after = keys(config)
    moved = {kind for (kind, name) in before if before[kind, name] != after[kind, name]}
    assert moved == ({"sparse"} if section == "sparse" else {"imp", "sparse"})
    for stage in make_plan(config).stages:
        if stage.kind in ("dense", "imp", "sparse"):
            assert stage.settings.recipe.neuron_scaling == (stage.kind == section)
            assert ("neuron_scaling" in stage.settings.plain()["recipe"]) == (stage.kind == section)


def test_a_rewound_schedule_is_dense_trainings_with_it():
    config = tiny_sweep(sparse={**ON, "schedule": "rewound"})
    recipes = {stage.settings.recipe for stage in make_plan(config).stages if stage.kind == "sparse"}
    assert {recipe.neuron_scaling for recipe in recipes} == {True}
    assert {recipe.lr for recipe in recipes} == {config.dense.lr}


def test_dense_training_has_no_mask():
    with pytest.raises(ValueError, match=r"optimizer\.neuron_scaling is of networks with a mask, in imp and sparse") as error:
        tiny_sweep(dense=ON)
    assert "dense" in str(error.value)


@pytest.mark.parametrize("update", [{}, {"name": "adamw", "eps": 1e-7}])
def test_a_run_from_before_there_was_the_setting_keeps_its_name(update):
    config = tiny_sweep(sparse={"optimizer": update}, dense={"optimizer": update})
    dumped = config.model_dump(mode="json")
    for section in ("dense", "imp", "sparse"):
        assert dumped[section]["optimizer"].pop("neuron_scaling") is False
    older = without_later(dumped)
    assert config.science()["sparse"] == older["sparse"]
    assert config.science()["dense"] == older["dense"]
    assert ("optimizer" in older["sparse"]) == bool(update)
    assert tiny_sweep(sparse=ON).science()["sparse"]["optimizer"]["neuron_scaling"] is True
