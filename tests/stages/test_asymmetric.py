"""A network without permutation symmetry in every stage of a sweep: pi is the identity, and plans and reports say so."""

import numpy as np
import pytest
import torch

from raylth.cli.sweep import main
from raylth.driver.prepare import prepare
from raylth.driver.run_record import Run
from raylth.export.formats import write_network
from raylth.export.stored_network import find_network
from raylth.report import load_permutations, load_results, mean_effects, write_report
from raylth.stages import check_networks, make_plan, result_rows, run_plan, symmetry_notes
from raylth.store import Store
from tests.conftest import tiny_sweep

ASYMMETRIC = {"model": {"options": {"asymmetric": True}}}
EVERYTHING = {
    **ASYMMETRIC,
    "seeds": {"replicates": 2},
    "match": {"method": ["activation", "weight", "learned", "identity", "random"], "epochs": [4]},
    "connect": {"points": 3, "corrections": ["plain", "reset"], "samples": 100, "unmatched": True},
    "analyses": {
        "lines": [{"points": 3, "corrections": ["plain"], "samples": 100}],
        "planes": [{"resolution": 3, "samples": 100}],
        "imp_line": {"points": 3, "corrections": ["plain"], "samples": 100},
        "ensemble": {},
        "overlap": {"own": True},
        "match_quality": {"samples": [30], "epochs": [2], "line": {"points": 3, "corrections": ["plain"], "samples": 100}},
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = tiny_sweep(**EVERYTHING)
    plan, store = make_plan(config), Store(tmp_path_factory.mktemp("asymmetric"))
    graph = run_plan(plan, store)
    assert not graph.errors, graph.errors
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    return plan, store, run


def test_every_stage_works_and_a_permuted_arm_is_naive_to_the_bit(finished):
    plan, store, run = finished
    assert load_permutations(run.folder).empty
    arms = {}
    for stage in plan.stages:
        if stage.kind == "match":
            assert store.tensors(stage.key, "permutation") == {}
        if stage.kind == "sparse" and stage.labels.get("member") is None:
            cell = tuple(stage.labels[name] for name in ("replicate", "sparsity", "rewind_epoch"))
            arms.setdefault(cell, {}).setdefault(stage.labels["arm"], []).append(store.tensors(stage.key, "weights"))
    for arm in arms.values():
        (naive,) = arm["naive"]
        assert len(arm["permuted"]) == 5
        for other in (*arm["permuted"], *arm["random_permutation"]):
            assert all(np.array_equal(tensor, other[name]) for name, tensor in naive.items())
        assert any(not np.array_equal(tensor, arm["random"][0][name]) for name, tensor in naive.items())
    effects = mean_effects(load_results(run.folder))
    same = effects[effects["against"] == "naive"]
    assert (same[["difference", "low", "high"]] == 0).all(axis=None)


def test_the_report_says_that_pi_is_the_identity(finished):
    _, _, run = finished
    page = write_report(run.folder, run.folder / "report").read().decode()
    assert "has no permutation symmetry: pi leaves every unit where it is" in page
    assert "nothing was matched, or no unit can be permuted" in page


def test_a_stored_network_leaves_only_with_what_its_architecture_fixes(finished, tmp_path):
    _, store, run = finished
    row = load_results(run.folder).query("arm == 'lth'").iloc[0]
    network = find_network(store, row["key"])
    with pytest.raises(ValueError, match="torch-prune: holds tensors only, not the entries that an asymmetric network fixes"):
        write_network(network, "torch-prune", tmp_path)
    write_network(network, "safetensors", tmp_path)
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), network.module()(x))


def test_a_plan_says_that_pi_is_the_identity_before_anything_is_trained(tmp_path, capsys):
    text = "has no permutation symmetry (model.options.asymmetric), so pi leaves every unit where it is"
    plan = make_plan(tiny_sweep(**ASYMMETRIC))
    assert symmetry_notes(plan) == [f"mlp, width 0.25, {text}: permuted and random_permutation train what naive trains"]
    assert symmetry_notes(make_plan(tiny_sweep())) == []
    none = make_plan(tiny_sweep(**ASYMMETRIC, sparse={"arms": ["lth", "naive"]}, match={"epochs": None}))
    assert symmetry_notes(none) == []
    notes = []
    prepare(tiny_sweep(**ASYMMETRIC, storage=str(tmp_path)), notes.append)
    assert notes == symmetry_notes(plan)
    words = ["sweeps/asymmetric.yaml", "--dry-run", f"storage={tmp_path}"]
    assert main(words) == 0
    assert f"mlp, width 1, {text}: permuted trains what naive trains" in capsys.readouterr().out.replace("\n", " ")
    assert main([*words, "model.options={}"]) == 0
    assert "symmetry" not in capsys.readouterr().out


def test_repair_is_refused_before_anything_is_trained(tmp_path):
    config = tiny_sweep(**ASYMMETRIC, connect={"corrections": ["plain", "repair"], "samples": 100})
    with pytest.raises(
        ValueError, match=r"^model\.name: mlp, width 0\.25: .*fc1 has fixed entries, which REPAIR cannot rescale"
    ):
        check_networks(make_plan(config), Store(tmp_path))
    images = {"data": {"name": "digits"}, "model": {"name": "resnet20", "widths": [0.5], "options": {"asymmetric": True}}}
    check_networks(make_plan(tiny_sweep(**images, connect={"corrections": ["repair"], "samples": 100})), Store(tmp_path))
