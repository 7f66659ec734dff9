"""The whole method in one process, without Ray: what docs/method.md says of weights and masks, checked on the artefacts."""

import dataclasses
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from raylth.core.models import init_model
from raylth.core.permutation import PermutationSpec, derive_spec, random_permutation
from raylth.core.pruning import num_landing_alive
from raylth.stages import Stage, load_data, make_context, make_plan, result_rows, run_plan, scan
from raylth.stages.execute import run_stage
from raylth.stages.kinds import KINDS
from raylth.stages.matching import PermutationBroken, prove
from raylth.store import Store
from tests.conftest import tiny_sweep


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    plan = make_plan(tiny_sweep())
    graph = run_plan(plan, store)
    assert not graph.errors
    return plan, graph, store


def one(plan, kind, **labels) -> Stage:
    found = [s for s in plan.stages if s.kind == kind and all(s.labels.get(k) == v for k, v in labels.items())]
    assert len(found) == 1, [s.name for s in found]
    return found[0]


def test_everything_is_done_and_a_second_run_computes_nothing(finished, monkeypatch):
    plan, graph, store = finished
    assert set(graph.states.values()) == {"done"}
    assert len(graph.cached) == 0
    monkeypatch.setattr("raylth.stages.execute.run_stage", lambda *a: pytest.fail("a stage ran again"))
    assert len(run_plan(plan, store).cached) == len(plan.stages)


def test_checkpoint_0_is_the_untouched_initialisation(finished):
    plan, _, store = finished
    stage = one(plan, "dense", network="B")
    expected = init_model(stage.settings.init_seed, "mlp", width=0.25, num_classes=10, in_shape=(40,)).state_dict()
    for name, array in store.tensors(stage.checkpoints["0"], "weights").items():
        np.testing.assert_array_equal(array, expected[name].numpy())


def test_masks_have_exact_counts_and_saved_weights_respect_them(finished):
    plan, _, store = finished
    for stage in plan.stages:
        if stage.kind not in ("imp", "sparse"):
            continue
        mask, weights = store.tensors(stage.key, "mask"), store.tensors(stage.key, "weights")
        assert all(not weights[name][~alive].any() for name, alive in mask.items()), stage.name
        if stage.kind == "sparse" or stage.labels["landing"]:
            total = sum(alive.size for alive in mask.values())
            alive = sum(int(alive.sum()) for alive in mask.values())
            assert alive == num_landing_alive(total, stage.labels["sparsity"]), stage.name


def test_the_trunk_only_ever_prunes_more(finished):
    plan, _, store = finished
    for stage in plan.stages:
        if stage.kind == "imp" and stage.labels["imp_round"] > 1:
            before, after = (store.tensors(key, "mask") for key in (stage.parents["network"], stage.key))
            assert all((after[name] <= before[name]).all() for name in after)


@pytest.mark.parametrize("arm", ["lth", "naive", "permuted", "random", "random_permutation"])
def test_each_arm_has_the_mask_of_the_table(finished, arm):
    plan, _, store = finished
    epoch = {"match_epoch": 4} if arm == "permuted" else {}
    stage = one(plan, "sparse", arm=arm, sparsity=0.5, rewind_epoch=1, **epoch)
    mask_a = store.tensors(stage.parents["mask"], "mask")
    mask = store.tensors(stage.key, "mask")
    same = all(np.array_equal(mask[name], mask_a[name]) for name in mask)
    assert same == (arm in ("lth", "naive"))
    assert all(mask[name].sum() == mask_a[name].sum() for name in mask), "the density per layer must stay"
    source = one(plan, "dense", network="A" if arm == "lth" else "B")
    assert stage.parents["weights"] == source.checkpoints["1"]
    if arm == "permuted":
        perm = store.tensors(stage.parents["permutation"], "permutation")
        expected = mask_a["fc2.weight"][perm["fc2"]][:, perm["fc1"]]
        np.testing.assert_array_equal(mask["fc2.weight"], expected)
    if arm == "random_permutation":  # rows keep their sums under a permutation, not under a shuffle
        assert sorted(mask["fc2.weight"].sum(1)) == sorted(mask_a["fc2.weight"].sum(1))


def test_early_matching_reads_b_at_that_epoch(finished):
    plan, _, _ = finished
    early = one(plan, "match", match_epoch=2)
    assert early.parents["b"] == one(plan, "dense", network="B").checkpoints["2"]
    assert early.parents["a"] == one(plan, "dense", network="A").key


def test_rows_say_what_was_trained(finished):
    plan, graph, store = finished
    rows = result_rows(plan, graph, store, "run")
    assert len(rows["results"]) == len(plan.stages) - plan.count("match")
    assert len({row["key"] for row in rows["results"]}) == len(rows["results"])
    for row in rows["results"]:
        assert row["status"] == "done"
        assert 0 <= row["test_accuracy"] <= 100
        if row["stage"] == "sparse":
            assert row["mask_sparsity"] == pytest.approx(row["sparsity"], abs=1e-3)
            assert 0 < row["model_sparsity"] < row["mask_sparsity"]
    assert len(rows["permutations"]) == 3 * plan.count("match")
    assert sum(row["test_accuracy"] is not None for row in rows["curves"] if "test_accuracy" in row) > 0


def test_two_stores_get_the_same_bits(finished, tmp_path):
    plan, _, store = finished
    other = Store(tmp_path)
    run_plan(plan, other)
    for stage in plan.stages:
        assert store.files(stage.key), f"{stage.name} made nothing that could be compared"
        for name in store.files(stage.key):
            np.testing.assert_array_equal(store.read(stage.key, name), other.read(stage.key, name))


def test_a_permutation_of_another_symmetry_is_set_aside_and_found_again(finished, tmp_path):
    """As one that an earlier version found, which knew less of what may move."""
    plan, _, store = finished
    other = Store(tmp_path / "store")
    shutil.copytree(store.root.path, other.root.path)
    match = next(stage for stage in plan.stages if stage.kind == "match")
    arms = [stage for stage in plan.stages if match.key in stage.parents.values() and stage.kind == "sparse"]
    perms = store.tensors(match.key, "permutation")
    first = next(iter(perms))
    fewer = {name: perm for name, perm in perms.items() if name != first}
    for arm in arms:
        other.folder(arm.key).remove()
    other.publish(match.key, kind="match", tensors={"permutation": fewer}, metrics=store.metrics(match.key))
    assert not run_plan(plan, other).errors
    assert [place.name.split("-")[0] for place in (other.root.path / "broken").iterdir()] == [match.key]
    for key in (match.key, *(arm.key for arm in arms)):
        for name in store.files(key):
            np.testing.assert_array_equal(other.read(key, name), store.read(key, name))


def test_a_broken_parent_is_set_aside_and_made_again(finished, tmp_path):
    plan, _, _ = finished
    store = Store(tmp_path)
    run_plan(plan, store)
    victim, child = one(plan, "dense", network="A"), one(plan, "imp", imp_round=1, landing=False)
    expected = store.read(child.key, "weights").copy()
    path = next(store.folder(victim.key).path.glob("weights*"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    store.set_aside(child.key)
    notes: list[str] = []
    graph = scan(plan, store, notes.append)
    assert victim.key[:12] in notes[0]
    assert path.name in notes[0]
    assert sorted(graph.stages[k].kind for k, state in graph.states.items() if state != "done") == ["dense", "imp"]
    graph = run_plan(plan, store)
    assert set(graph.states.values()) == {"done"}
    np.testing.assert_array_equal(store.read(child.key, "weights"), expected)
    assert len(list((store.root.path / "broken").iterdir())) == 2


def test_a_stage_killed_while_publishing_is_computed_again_and_ends_alike(finished, tmp_path, monkeypatch):
    """The process dies between an artefact's files and its manifest; the next run starts from what is whole."""
    plan, _, reference = finished
    store = Store(tmp_path)
    real = Store.publish

    def die(self, key, *, kind, tensors, metrics):
        if kind == "imp":
            real(self, key, kind=kind, tensors=tensors, metrics=metrics)
            (self.folder(key) / "MANIFEST.json").remove()  # the state of the disk just before the last rename
            raise KeyboardInterrupt
        real(self, key, kind=kind, tensors=tensors, metrics=metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, store)
    ran: list[str] = []
    graph = run_plan(plan, store, lambda stage: ran.append(stage.kind))
    assert set(graph.states.values()) == {"done"}
    assert "dense" not in ran
    assert ran.count("imp") == plan.count("imp")
    for stage in plan.stages:
        for name in reference.files(stage.key):
            np.testing.assert_array_equal(reference.read(stage.key, name), store.read(stage.key, name))


def test_a_failed_stage_blocks_only_its_descendants(finished, tmp_path, monkeypatch):
    plan, _, _ = finished

    def fail_early_match(stage, context):
        if stage.labels["match_epoch"] == 2:
            raise RuntimeError("no alignment today\nsecond line")
        return match.compute(stage, context)

    match = KINDS["match"]
    monkeypatch.setitem(KINDS, "match", replace(match, compute=fail_early_match))
    graph = run_plan(plan, Store(tmp_path))
    assert list(graph.errors.values()) == ["RuntimeError: no alignment today"]
    blocked = {graph.stages[key].labels["match_epoch"] for key in graph.blockers}
    assert blocked == {2}
    assert sum(state == "done" for state in graph.states.values()) == len(plan.stages) - 1 - len(graph.blockers)


def test_changed_data_is_noticed(finished, tmp_path):
    from raylth.stages import StageFailed, load_data, make_context

    plan, _, store = finished
    context = make_context(store, load_data(plan.config.data), data_sha256="0" * 64)
    stage = one(plan, "match", match_epoch=4)
    aside = store.set_aside(stage.key)
    with pytest.raises(StageFailed, match="made from data"):
        run_stage(stage, context)
    aside.move(store.folder(stage.key))


def test_stages_run_from_a_plain_script_and_never_load_ray(tmp_path):
    script = f"""
import sys
from raylth.stages import make_plan, run_plan
from raylth.store import Store
from raylth.config.load import read_sweep
config = read_sweep("sweeps/quickstart.yaml", ["data.num_train=200", "data.num_test=50", "model.widths=[0.25]",
    "dense.epochs=2", "imp.epochs_per_round=1", "sparse.rewinds=[0]", "sparse.sparsities=[0.5]", "seeds.replicates=1"])
graph = run_plan(make_plan(config), Store({str(tmp_path)!r}))
assert set(graph.states.values()) == {{"done"}}, graph.errors
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_permutation_that_changes_the_function_is_not_published_and_its_group_is_named():
    model, moved = (init_model(seed, "mlp", width=0.25, num_classes=10, in_shape=(40,)) for seed in (1, 2))
    x = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    spec = derive_spec(model, x)
    prove(model, moved, random_permutation(spec, 0), x)
    wrong = PermutationSpec(spec.groups, {**spec.axes, "fc3.weight": (spec.axes["fc3.weight"][0], None)})
    with pytest.raises(PermutationBroken, match=r"group 'fc2' alone by .*fc2.weight, fc2.bias. pi was not published"):
        prove(model, moved, random_permutation(wrong, 0), x)


def test_the_identity_method_is_the_naive_arm_to_the_bit(tmp_path):
    config = tiny_sweep(
        match={"method": ["identity", "weight", "learned", "random"], "epochs": [4], "learned_epochs": 1},
        sparse={"arms": ["naive", "permuted"], "sparsities": [0.5], "rewinds": [0]},
    )
    plan, store = make_plan(config), Store(tmp_path)
    run_plan(plan, store)
    arms = {stage.labels.get("match_method"): stage.key for stage in plan.stages if stage.kind == "sparse"}
    weights = {method: store.tensors(key, "weights")["fc2.weight"] for method, key in arms.items()}
    assert np.array_equal(weights["identity"], weights[None])
    for method in ("weight", "learned", "random"):
        assert not np.array_equal(weights[method], weights[None]), method
        match = next(s for s in plan.stages if s.kind == "match" and s.settings.method == method)
        metrics = store.metrics(match.key)
        assert metrics["method"] == method
        assert set(metrics["objective"]) == {"fc1", "fc2", "fc3"}
        again = Store(tmp_path / "again")
        run_plan(plan, again)
        assert np.array_equal(again.tensors(match.key, "permutation")["fc2"], store.tensors(match.key, "permutation")["fc2"])


def test_lines_between_matched_networks_have_barriers_with_and_without_repair(tmp_path):
    config = tiny_sweep(
        match={"method": ["activation", "random"], "epochs": [4]},
        connect={"points": 5, "corrections": ["plain", "reset", "repair"], "samples": 300},
        sparse={"arms": ["permuted"], "sparsities": [0.5], "rewinds": [0]},
    )
    plan, store = make_plan(config), Store(tmp_path)
    graph = run_plan(plan, store)
    assert not graph.errors
    lines = {stage.labels["match_method"]: stage for stage in plan.stages if stage.kind == "connect"}
    assert set(lines) == {"activation", "random"}
    dense = {stage.labels["network"]: store.metrics(stage.key) for stage in plan.stages if stage.kind == "dense"}
    for stage in lines.values():
        points = store.metrics(stage.key)["line"]
        assert len(points) == 5 * 3 * 2
        for point in points:
            if point["split"] == "test" and point["alpha"] in (0, 1):
                end = dense["A" if point["alpha"] == 0 else "B"]
                assert point["loss"] == pytest.approx(end["test_loss"], rel=1e-4), "pi(A) is A, and the ends stay as they are"
                assert point["error"] == pytest.approx(100 - end["test_accuracy"], abs=1.0)
    rows = result_rows(plan, graph, store, "run")["barriers"]
    assert len(rows) == 2 * 3 * 2

    def barriers(correction):
        found = [row for row in rows if row["correction"] == correction and row["split"] == "train"]
        return {row["match_method"]: row["loss_barrier"] for row in found}

    assert barriers("plain")["activation"] < barriers("plain")["random"], "matching lowers the barrier"
    assert barriers("reset") == barriers("plain"), "a network without batch norm has nothing to reset"


def test_an_infinite_test_loss_is_a_result_and_fails_nothing(tmp_path):
    """The network learns, and its loss on the test split, which has one huge sample, is infinite."""
    plan = make_plan(
        tiny_sweep(
            connect={"points": 3, "corrections": ["plain"], "samples": 100},
            sparse={"arms": ["permuted"], "sparsities": [0.5], "rewinds": [0]},
        )
    )
    store, data = Store(tmp_path), load_data(plan.config.data)
    test_x = data.test_x.copy()
    test_x[0] = 3e38
    context = make_context(store, dataclasses.replace(data, test_x=test_x), evaluate_every=1)
    for stage in plan.stages:
        run_stage(stage, context)
        metrics = store.metrics(stage.key)
        if stage.kind in ("dense", "imp", "sparse"):
            assert metrics["test_loss"] is None
            assert 0 <= metrics["test_accuracy"] <= 100
            assert all(point["test_loss"] is None for point in metrics["curve"])
        if stage.kind == "connect":
            rows = {row["split"]: row for row in metrics["barriers"]}
            assert rows["train"]["loss_barrier"] >= 0
            assert "loss_barrier" not in rows["test"]
            assert rows["test"]["error_barrier"] >= 0
    graph = scan(plan, store)
    tables = result_rows(plan, graph, store, "run")
    assert {row["status"] for row in tables["results"]} == {"done"}
    assert [row.get("loss_barrier") for row in tables["barriers"] if row["split"] == "test"].count(None) > 0
