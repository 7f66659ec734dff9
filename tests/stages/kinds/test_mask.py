"""Masks and networks that come from files, and go into them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune

from raylth.arms import ARMS, Arm
from raylth.cli.sweep import main
from raylth.core.masks import full_mask
from raylth.core.models import init_model
from raylth.core.pruning import prune_global_magnitude
from raylth.stages import export_mask, make_plan, run_plan
from raylth.store import Store
from tests.conftest import tiny_sweep

SPARSE = {"arms": ["lth", "naive", "permuted", "random"], "sparsities": [0.3, 0.5], "rewinds": [1]}
MLP = {"name": "mlp", "width": 0.25, "num_classes": 10, "in_shape": (40,)}


def sweep(**changes):
    sparse = {**SPARSE, **changes.pop("sparse", {})}
    return make_plan(tiny_sweep(match={"epochs": [4]}, sparse=sparse, **changes))


def arms(plan):
    return {(s.labels["arm"], s.labels["sparsity"]): s for s in plan.stages if s.kind == "sparse"}


@pytest.fixture(scope="module")
def with_imp(tmp_path_factory):
    plan, store = sweep(), Store(tmp_path_factory.mktemp("imp"))
    assert not run_plan(plan, store).errors
    return plan, store


@pytest.mark.parametrize("ending", [".safetensors", ".pt", "the store's own"])
def test_an_exported_mask_that_comes_back_gives_the_same_networks_to_the_bit(with_imp, tmp_path, ending):
    plan, store = with_imp
    for (arm, sparsity), stage in arms(plan).items():
        if arm == "lth" and ending != "the store's own":
            export_mask(store, stage.parents["mask"], tmp_path / f"0-{sparsity}{ending}")
        elif arm == "lth":
            packed = next(store.folder(stage.parents["mask"]).path.glob("mask.*"))
            (tmp_path / f"0-{sparsity}.safetensors").write_bytes(packed.read_bytes())
    suffix = ending if ending.startswith(".") else ".safetensors"
    provided = sweep(sparse={"mask_from": str(tmp_path / f"{{replicate}}-{{sparsity}}{suffix}")})
    assert {stage.kind for stage in provided.stages} == {"dense", "mask", "match", "sparse"}, "no IMP any more"
    again = Store(tmp_path / "again")
    assert not run_plan(provided, again).errors
    for cell, stage in arms(provided).items():
        first, second = store.tensors(arms(plan)[cell].key, "weights"), again.tensors(stage.key, "weights")
        assert all(np.array_equal(first[name], second[name]) for name in first), cell


def test_a_network_pruned_elsewhere_is_network_a(tmp_path):
    network = init_model(77, **MLP)
    layers = [(layer, "weight") for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.5)
    torch.save(network.state_dict(), tmp_path / "pruned.pt")
    sparse = {"arms": ["naive", "permuted"], "sparsities": [0.5], "mask_from": str(tmp_path / "pruned.pt")}
    plan, store = sweep(sparse=sparse), Store(tmp_path / "store")
    assert [stage.labels["network"] for stage in plan.stages if stage.kind == "dense"] == ["B"], "A is not trained"
    assert not run_plan(plan, store).errors
    key = next(stage.key for stage in plan.stages if stage.kind == "mask")
    x = torch.randn(5, 40)
    taken_over = init_model(0, **MLP)
    taken_over.load_state_dict({name: torch.tensor(array) for name, array in store.tensors(key, "weights").items()})
    with torch.no_grad():
        torch.testing.assert_close(taken_over(x), network(x))
    assert store.metrics(key)["mask_sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert store.metrics(key)["test_accuracy"] >= 0
    match = next(stage for stage in plan.stages if stage.kind == "match")
    assert match.parents["a"] == key
    export_mask(store, arms(plan)["permuted", 0.5].key, tmp_path / "out.safetensors", with_network=True)
    assert {"head.weight_orig", "head.weight_mask", "head.bias"} <= set(load_file(tmp_path / "out.safetensors"))


def test_the_bytes_decide_the_key_and_the_place_does_not(tmp_path):
    mask = prune_global_magnitude(init_model(0, **MLP).state_dict(), full_mask(init_model(0, **MLP)), fraction=0.5)
    for name in ("one", "two"):
        save_file(mask, tmp_path / f"{name}.safetensors")
    save_file({name: ~alive for name, alive in mask.items()}, tmp_path / "three.safetensors")

    def key(name):
        sparse = {"arms": ["naive"], "sparsities": [0.5], "mask_from": str(tmp_path / f"{name}.safetensors")}
        plan = sweep(sparse=sparse)
        assert [stage.labels["network"] for stage in plan.stages if stage.kind == "dense"] == ["B"], "nobody needs A"
        return next(stage.key for stage in plan.stages if stage.kind == "mask")

    assert key("one") == key("two") != key("three")


def test_a_file_that_changes_after_planning_stops_its_stage(tmp_path):
    mask = prune_global_magnitude(init_model(0, **MLP).state_dict(), full_mask(init_model(0, **MLP)), fraction=0.5)
    save_file(mask, tmp_path / "m.safetensors")
    sparse = {"arms": ["naive"], "sparsities": [0.5], "mask_from": str(tmp_path / "m.safetensors")}
    plan = sweep(sparse=sparse)
    save_file({name: ~alive for name, alive in mask.items()}, tmp_path / "m.safetensors")
    graph = run_plan(plan, Store(tmp_path / "store"))
    assert any("has changed since the sweep started" in error for error in graph.errors.values())


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        (None, {}, "m.safetensors: cannot be read: No such file"),
        (b"hello", {}, "m.safetensors: not a safetensors file: its 5 bytes are damaged, or of another kind"),
        (b"not a mask" * 9, {}, "m.safetensors: not a safetensors file: its 90 bytes are damaged, or of another kind"),
        (b"some text", {"mask_from": "m.pt"}, "m.pt: not a file that torch.save wrote: its 9 bytes are of another kind"),
        (b"PK\3\4...", {"mask_from": "m.pt"}, "m.pt: damaged, or it holds more than tensors"),
        ({}, {}, "m.safetensors: there is no mask in it"),
        (
            {"fc1.weight": torch.ones(32, 41)},
            {},
            "m.safetensors: fc1.weight: the mask has shape (32, 41), the weight (32, 40)",
        ),
        ({"fc9.weight": torch.ones(3)}, {}, "m.safetensors: 'fc9.weight' is not a prunable weight of the network"),
        ({"fc1.weight": torch.full((32, 40), 0.3)}, {}, "m.safetensors: fc1.weight holds values other than 0 and 1"),
        ({"fc1.weight": torch.zeros(32, 40)}, {}, "sparse.sparsities: 0.5 asked for, but "),
        ({"fc1.weight_orig": torch.ones(32, 40), "fc1.weight_mask": torch.ones(32, 40)}, {}, "the file lacks 'fc1.bias'"),
        ({}, {"mask_from": "m-{seed}.safetensors"}, "may hold {replicate}, {sparsity} and {width} only"),
        ({}, {"mask_from": "m.npz"}, "m.npz: cannot be read"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_started(tmp_path, monkeypatch, capsys, tensors, settings, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(tensors, bytes):
        (tmp_path / settings.get("mask_from", "m.safetensors")).write_bytes(tensors)
    elif tensors is not None:
        save_file(tensors, tmp_path / "m.safetensors")
    sparse = {"arms": ["naive"], "sparsities": [0.5], "mask_from": "m.safetensors", **settings}
    config = tiny_sweep(sparse=sparse).model_dump_json(exclude_defaults=True)
    (tmp_path / "sweep.yaml").write_text(config)
    assert main(["sweep.yaml"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("sweep.yaml:1: sparse.")
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "raylth-store").exists()


def test_lth_needs_early_weights_that_a_pruned_network_does_not_have(with_imp, tmp_path):
    plan, store = with_imp
    export_mask(store, arms(plan)["lth", 0.5].key, tmp_path / "a.safetensors", with_network=True)
    with pytest.raises(ValueError, match=r"sparse.arms: lth starts from A's early weights"):
        sweep(sparse={"sparsities": [0.5], "mask_from": str(tmp_path / "a.safetensors")})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"lines": [{"between": ["imp", "B"]}]}, "lines.0.between: imp is A pruned in rounds, and sparse.mask_from takes"),
        (
            {"lines": [{"between": ["pi(imp)", "B"]}]},
            r"lines.0.between: pi\(imp\) is A pruned in rounds, and sparse.mask_from",
        ),
        ({"imp_line": {}}, "imp_line: needs rounds of pruning, and sparse.mask_from replaces them"),
    ],
)
def test_what_needs_rounds_of_pruning_is_refused_with_the_setting_that_takes_their_place(asked, message):
    with pytest.raises(ValueError, match=rf"analyses.{message}"):
        sweep(sparse={"arms": ["naive"], "sparsities": [0.5], "mask_from": "m.pt"}, analyses=asked)


def test_an_arm_of_ones_own_that_needs_them_is_named(with_imp, tmp_path, monkeypatch):
    monkeypatch.setitem(ARMS._entries, "early", Arm("A", "none", "A's early weights under A's mask"))
    plan, store = with_imp
    export_mask(store, arms(plan)["lth", 0.5].key, tmp_path / "a.safetensors", with_network=True)
    for names, said in ((["early"], "early starts from"), (["lth", "early"], "lth and early start from")):
        with pytest.raises(ValueError, match=rf"sparse.arms: {said} A's early weights.* remove {' and '.join(names)}"):
            sweep(sparse={"arms": ["naive", *names], "sparsities": [0.5], "mask_from": str(tmp_path / "a.safetensors")})


def test_export_refuses_what_nobody_reads(with_imp, tmp_path):
    plan, store = with_imp
    with pytest.raises(ValueError, match=r"a.npz: the suffix is not one of .safetensors, .pt, .pth"):
        export_mask(store, plan.stages[-1].key, tmp_path / "a.npz")
    for key in ("0" * 64, plan.stages[-1].key[:12]):
        with pytest.raises(ValueError, match=f"there is no artefact '{key}' here"):
            export_mask(store, key, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())
