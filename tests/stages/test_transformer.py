"""Every kind of stage of a study of a transformer that is trained by AdamW."""

import pytest

from raylth.stages import make_plan, run_plan
from raylth.store import Store
from tests.conftest import tiny_sweep

ADAMW = {"name": "adamw", "betas": (0.9, 0.99)}
OPTIONS = {"dim": 16, "depth": 2, "heads": 2, "patch": 4, "mlp_ratio": 2}


def study(betas=(0.9, 0.99)):
    """A small study of a ViT: every arm, every kind of analysis."""
    trained = {"lr": 0.003, "optimizer": ADAMW, "batch_size": 64}
    return tiny_sweep(
        data={"name": "digits", "num_train": 128, "num_test": 50},
        model={"name": "vit", "widths": [0.5, 1], "options": OPTIONS},
        dense={**trained, "optimizer": {**ADAMW, "betas": betas}, "warmup_epochs": 1, "epochs": 3},
        imp=trained,
        match={"method": ["activation", "weight", "learned"], "epochs": [3]},
        sparse={**trained, "sparsities": [0.5]},
        connect={"points": 3, "samples": 100, "corrections": ["plain", "reset", "repair"]},
        analyses={"planes": [{"resolution": 3, "samples": 50}], "overlap": {}, "lines": [{"points": 3, "samples": 50}]},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    plan = make_plan(study())
    store = Store(tmp_path_factory.mktemp("store"))
    assert not run_plan(plan, store).errors
    return plan, store


def test_every_arm_has_its_sparsity_exactly_and_the_embeddings_stay_dense(finished):
    plan, store = finished
    arms = [stage for stage in plan.stages if stage.kind == "sparse"]
    assert {stage.labels["arm"] for stage in arms} == {"lth", "naive", "permuted", "random", "random_permutation"}
    for stage in arms:
        mask, weights = (store.tensors(stage.key, name) for name in ("mask", "weights"))
        assert {name.split(".")[-2] for name in mask} == {"patch_embed", "qkv", "proj", "fc1", "fc2", "head"}
        total = sum(alive.size for alive in mask.values())
        assert sum(int(alive.sum()) for alive in mask.values()) == total - round(0.5 * total)
        assert all(not weights[name][~alive].any() for name, alive in mask.items())


def test_the_optimizers_settings_are_part_of_the_keys():
    keys = [
        {key for stage in make_plan(study(betas)).stages for key in stage.produces} for betas in ((0.9, 0.99), (0.9, 0.999))
    ]
    assert not keys[0] & keys[1]


def test_lines_are_repaired(finished):
    plan, store = finished
    lines = [store.metrics(stage.key)["line"] for stage in plan.stages if stage.kind == "connect"]
    repaired = [line for line in lines if any(row["correction"] == "repair" for row in line)]
    assert repaired
    for line in repaired:
        plain, found = ([row["loss"] for row in line if row["correction"] == name] for name in ("plain", "repair"))
        assert len(plain) == len(found)
        assert plain != found
