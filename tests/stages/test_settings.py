"""Settings of stages: what is written of them, and that it reads back the same."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from raylth.core.training.recipe import Recipe
from raylth.stages import KINDS, read_stage
from raylth.stages.settings import (
    Amount,
    DataSettings,
    ImpSettings,
    MatchSettings,
    NetworkSettings,
    OwnTransformSettings,
    SparseSettings,
    TransformSettings,
)
from raylth.stages.stage import stage_key
from tests.stages.kinds.test_kinds import plans  # noqa: F401  # a fixture

MODEL = NetworkSettings(name="mlp", width=0.25, init="own", num_classes=10, in_shape=(40,))
DATA = DataSettings(name="mnist1d", layout=None, normalisation="own", num_train=100)


def test_every_kind_of_stage_travels_as_json(plans):  # noqa: F811
    kinds = set()
    for stage in (stage for plan in plans for stage in plan.stages):
        kinds.add(stage.kind)
        assert type(stage.settings) is KINDS[stage.kind].settings
        back = read_stage(json.loads(json.dumps(stage.to_dict())))
        assert back == stage
        if stage.kind != "dense":  # whose key names its last epoch, too
            assert stage_key(back.kind, back.settings, back.parents) == stage.key
    assert kinds == set(KINDS)


def test_settings_are_immutable_and_compared_by_all_fields():
    with pytest.raises(FrozenInstanceError):
        MODEL.width = 1.0
    assert replace(MODEL, width=0.5) != MODEL
    with pytest.raises(TypeError, match="shape"):
        NetworkSettings.read({**MODEL.plain(), "shape": [40]})


def test_what_came_later_is_omitted_and_what_was_there_before_is_not():
    assert MODEL.plain() == {"name": "mlp", "width": 0.25, "init": "own", "num_classes": 10, "in_shape": [40]}
    assert replace(MODEL, code="c").plain()["code"] == "c"
    assert DATA.plain() == {"name": "mnist1d", "layout": None, "normalisation": "own", "num_train": 100}
    training = {"model": MODEL, "data": DATA, "augment": "none", "recipe": Recipe(epochs=2, lr=0.1), "seed": 0}
    written = SparseSettings(**training, mask_transform=TransformSettings(name="none")).plain()
    assert written["seed"] == 0, "a number, not an absence"
    assert written["mask_transform"] == {"name": "none"}
    assert "precision" not in written["recipe"]
    assert written["recipe"]["momentum"] == 0.9


def test_a_transform_of_ones_own_writes_that_it_has_no_code():
    """One from an installed library has none; its key was made with null."""
    own = OwnTransformSettings(name="package.module:arm", code=None, seed=3)
    assert own.plain() == {"name": "package.module:arm", "code": None, "seed": 3}
    assert TransformSettings.read(own.plain()) == own
    assert type(TransformSettings.read({"name": "none"})) is TransformSettings


def test_a_matchers_own_settings_lie_beside_the_others():
    settings = MatchSettings(model=MODEL, data=DATA, method="learned", samples=10, own={"epochs": 5, "lr": 0.05}, seed=1)
    written = settings.plain()
    assert set(written) == {"model", "data", "method", "samples", "epochs", "lr", "seed"}
    assert MatchSettings.read(written) == settings


def test_trainings_share_a_program_that_are_alike_but_for_seeds_and_masks():
    training = {"model": MODEL, "data": DATA, "augment": "none", "recipe": Recipe(epochs=2, lr=0.1), "seed": 0}
    one = ImpSettings(**training, amount=Amount(fraction=0.2), prune_shortcuts=False)
    assert replace(one, seed=1, amount=Amount(sparsity=0.5)).program == one.program
    for changes in (
        {"model": replace(MODEL, width=1.0)},
        {"data": replace(DATA, num_train=50)},
        {"augment": "flip_crop"},
        {"recipe": Recipe(epochs=2, lr=0.2)},
        {"prune_shortcuts": True},
    ):
        assert replace(one, **changes).program != one.program
