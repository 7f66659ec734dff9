"""An arm of one's own: one object in a file of its own runs through settings, training, tables, figures and cards.

That it runs on Ray, from the command line, is in tests/test_extending.py.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from raylth.arms import ARMS, BUILT_IN, Arm, arm_of, rank, short_name
from raylth.config.sweep import SweepConfig
from raylth.driver.run_record import Run
from raylth.export.model_card import card
from raylth.export.stored_network import find_network
from raylth.report import accuracy_table, load_results, write_report
from raylth.stages import make_plan, result_rows, run_plan
from raylth.store import Store, locate
from tests.conftest import tiny_sweep

ROOT = Path(__file__).resolve().parents[1]
PAGE = re.search(r"```python\n# own_arms\.py\n(.*?)```", (ROOT / "docs/extending/arm.md").read_text(), re.DOTALL)[1]
OWN = (
    PAGE
    + """

def wrong(mask, given):
    return {name: alive[:1] for name, alive in mask.items()}


broken = Arm("B", wrong, "no mask at all")
no_arm = upside_down
"""
)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own, in the folder where the sweep is started."""
    (tmp_path / "own_arms.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "own_arms.py"
    sys.modules.pop("own_arms", None)
    ARMS._found.clear()


def sweep(*arms: str, **changes) -> SweepConfig:
    sparse = {"arms": ["naive", "permuted", *arms], "sparsities": [0.5], "rewinds": [1]}
    return tiny_sweep(sparse=sparse, match={"epochs": [4]}, **changes)


def test_an_arm_of_ones_own_is_trained_and_shown_like_any_other(own, tmp_path):
    config = sweep("own_arms:flipped", "own_arms:inverse")
    plan, store = make_plan(config), Store(tmp_path / "store")
    graph = run_plan(plan, store)
    assert not graph.errors
    found = {stage.labels["arm"]: stage for stage in plan.stages if stage.kind == "sparse"}
    mask = store.tensors(found["naive"].key, "mask")
    upside = store.tensors(found["own_arms:flipped"].key, "mask")
    assert all(np.array_equal(upside[name], alive[::-1]) for name, alive in mask.items())
    perms = store.tensors(found["permuted"].parents["permutation"], "permutation")
    back = store.tensors(found["own_arms:inverse"].key, "mask")["fc2.weight"]
    np.testing.assert_array_equal(back[perms["fc2"]][:, perms["fc1"]], mask["fc2.weight"])
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    table = accuracy_table(load_results(run.folder))
    assert set(table["label"]) == {"naive", "permuted", "flipped", "inverse"}
    page = write_report(run.folder, locate(tmp_path / "report")).read().decode()
    assert "flipped" in page
    assert "#882255" in next((tmp_path / "report").glob("figures/accuracy_vs_rewind*.svg")).read_text()
    own.unlink()
    sys.modules.pop("own_arms", None)
    text = card(find_network(store, found["own_arms:flipped"].key), "safetensors")
    assert "B's early weights under A's mask upside down" in text


def test_its_code_is_in_the_key_and_the_other_arms_keys_are_not_moved(own):
    def keys(config):
        return {stage.labels["arm"]: stage.key for stage in make_plan(config).stages if stage.kind == "sparse"}

    before = keys(sweep("own_arms:flipped"))
    assert {name: before[name] for name in ("naive", "permuted")} == keys(sweep())
    own.write_text(OWN.replace("flip(0)", "flip(-1)"))
    after = keys(sweep("own_arms:flipped"))
    assert before["own_arms:flipped"] != after["own_arms:flipped"]
    assert before["naive"] == after["naive"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_arms:nothing", "arm 'own_arms:nothing' cannot be imported: AttributeError"),
        ("own_arms:no_arm", r"'own_arms:no_arm' is a function, not a raylth\.arms\.Arm"),
        ("not_there:x", "arm 'not_there:x' cannot be imported: ModuleNotFoundError"),
        ("permutted", "unknown arm 'permutted', did you mean 'permuted'"),
    ],
)
def test_what_is_no_arm_is_refused(own, name, message):
    with pytest.raises(ValueError, match=message):
        sweep(name)


def test_what_is_no_mask_fails_its_stage_with_one_line(own, tmp_path):
    graph = run_plan(make_plan(sweep("own_arms:broken")), Store(tmp_path / "store"))
    (error,) = graph.errors.values()
    assert re.match(
        r"TypeError: arm own_arms:broken: fc1\.weight: expected a bool tensor of \(\d+, 40\), found torch.bool of", error
    )


def test_arms_have_a_place_and_a_look_wherever_they_are_read():
    assert [rank(name) for name in BUILT_IN] == list(range(len(BUILT_IN)))
    assert rank("somewhere:else") == len(BUILT_IN)
    assert short_name("package.module:object") == "object"
    looks = [(arm.colour, arm.marker) for arm in BUILT_IN.values()]
    assert len(set(looks)) == len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == len(looks)
    assert isinstance(arm_of("not_here:x"), Arm), "a store from elsewhere is shown all the same"
