"""Every built-in finder in a whole study."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raylth.config.pruning import MaskConfig
from raylth.core.pruning import FINDERS, DynamicFinder
from raylth.driver.run_record import Run
from raylth.report import load_results, write_report
from raylth.report.statistics import contrast, recovered
from raylth.report.tables import accuracy_table
from raylth.stages import load_data, make_context, make_plan, result_rows, run_plan
from raylth.stages.kinds import find
from raylth.store import Store
from tests.conftest import tiny_sweep

ARMS = ["lth", "naive", "permuted", "random_permutation"]


def study(finder, tmp_path, **sections):
    sparse = {"arms": ARMS, "sparsities": [0.5, 0.9], "rewinds": [0], **sections.pop("sparse", {})}
    config = tiny_sweep(mask={"finder": finder, **sections.pop("mask", {})}, sparse=sparse, match={"epochs": [4]}, **sections)
    plan, store = make_plan(config), Store(tmp_path)
    graph = run_plan(plan, store)
    assert not graph.errors
    return plan, store, graph


@pytest.mark.parametrize("name", sorted(set(FINDERS) - {"imp"}))
def test_a_study_of_its_masks(name, tmp_path):
    updates = {"updates": {"every": 5}} if isinstance(FINDERS[name], DynamicFinder) else {}
    plan, store, _ = study(name, tmp_path, mask=updates)
    kind = "dynamic" if updates else "find"
    found = {stage.settings.sparsity: stage for stage in plan.stages if stage.kind == kind}
    assert set(found) == {0.5, 0.9}
    for sparsity, stage in found.items():
        mask = store.tensors(stage.key, "mask")
        total = sum(alive.size for alive in mask.values())
        assert sum(int(alive.sum()) for alive in mask.values()) == total - round(sparsity * total)
    _, again, _ = study(name, tmp_path / "again", mask=updates)
    for stage in found.values():
        assert store.files(stage.key) == again.files(stage.key)
        assert (store.read(stage.key, "mask") == again.read(stage.key, "mask")).all()
    trained = {(stage.labels["arm"], stage.labels["sparsity"]) for stage in plan.stages if stage.kind == "sparse"}
    assert trained == {(arm, sparsity) for arm in ARMS for sparsity in (0.5, 0.9)}


def test_the_network_that_was_trained_with_the_mask_is_matched(tmp_path):
    plan, store, graph = study("rigl", tmp_path, mask={"updates": {"every": 5}}, sparse={"rewinds": [0, 2]})
    found = {stage.settings.sparsity: stage for stage in plan.stages if stage.kind == "dynamic"}
    assert [stage.labels["network"] for stage in plan.stages if stage.kind == "dense"] == ["B"]  # no dense A
    matches = {stage.key: stage for stage in plan.stages if stage.kind == "match"}
    assert {match.parents["a"] for match in matches.values()} == {stage.key for stage in found.values()}
    for stage in plan.stages:
        if stage.kind != "sparse":
            continue
        mask = found[stage.labels["sparsity"]]
        assert stage.parents["mask"] == mask.key
        if stage.labels["arm"] == "lth":
            assert stage.parents["weights"] == mask.checkpoints[str(stage.labels["rewind_epoch"])]
        if stage.labels["arm"] == "permuted":
            assert matches[stage.parents["permutation"]].parents["a"] == mask.key
    rows = [row for row in result_rows(plan, graph, store, "run")["results"] if row["stage"] == "sparse"]
    assert {row["mask_finder"] for row in rows} == {"rigl"}
    by_cell = {}
    for row in rows:
        by_cell.setdefault((row["sparsity"], row["rewind_epoch"]), set()).add(row["pair_key"])
    assert all(len(keys) == 1 for keys in by_cell.values())  # lth, too, is paired with the arms of B
    (lth,) = [row for row in rows if (row["arm"], row["sparsity"], row["rewind_epoch"]) == ("lth", 0.9, 2)]
    assert (lth["epochs_a"], lth["epochs_imp"], lth["epochs_b"]) == (0, 4, 0)


def test_a_checkpoint_has_the_weights_of_its_epoch(tmp_path):
    plan, store, _ = study("set", tmp_path, sparse={"rewinds": [0, 2]})
    stages = [stage for stage in plan.stages if stage.kind == "dynamic"]
    initial = [store.tensors(stage.checkpoints["0"], "weights") for stage in stages]
    for name, weights in initial[0].items():  # of one seed, before any mask
        assert (weights == initial[1][name]).all()
    mask = store.tensors(stages[1].key, "mask")
    later = store.tensors(stages[1].checkpoints["2"], "weights")
    density = sum(int((later[name] != 0).sum()) for name in mask) / sum(alive.size for alive in mask.values())
    assert density <= 0.1 + 1e-3


def test_a_list_of_finders_is_an_axis(tmp_path):
    sections = {"sparse": {"sparsities": [0.5]}, "seeds": {"replicates": 2}, "storage": str(tmp_path)}
    plan, store, graph = study(["imp", "erk", "rigl"], tmp_path, mask={"updates": {"every": 5}}, **sections)
    run = Run.open(plan.config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    page = Path(str(write_report(run.folder, run.folder / "report"))).read_text()
    assert "permuted rigl" in page
    results = load_results(run.folder)
    arms = results[results["stage"] == "sparse"]
    assert len(arms) == 2 * 3 * len(ARMS)
    table = accuracy_table(results)
    assert set(table["label"]) == {f"{arm} {finder}" for arm in ARMS for finder in ("imp", "erk", "rigl")}
    compared = contrast(results, "permuted", "naive")
    assert {(row.label, row.against) for row in compared.itertuples()} == {
        (f"permuted {finder}", f"naive {finder}") for finder in ("imp", "erk", "rigl")
    }
    for finder in ("imp", "erk", "rigl"):  # each share is of its own finder's distance from naive to lth
        alone = recovered(results[results["mask_finder"].isna() | (results["mask_finder"] == finder)])
        together = recovered(results).pipe(lambda rows, name=finder: rows[rows["label"] == f"permuted {name}"])
        np.testing.assert_array_equal(alone["share"], together["share"])
    own = next(stage for stage in plan.stages if stage.kind == "dynamic" and stage.labels["replicate"] == 0)
    starts = {
        stage.labels["mask_finder"]: stage.parents["weights"]
        for stage in plan.stages
        if stage.labels.get("arm") == "lth" and stage.labels["replicate"] == 0
    }
    assert starts["rigl"] == own.checkpoints["0"]
    assert starts["imp"] == starts["erk"] != starts["rigl"]
    alone = {stage.key for stage in make_plan(plan.config.model_copy(update={"mask": MaskConfig()})).stages}
    assert alone <= {stage.key for stage in plan.stages}  # the first finder's stages are those of a sweep of its own


def test_too_few_steps_for_a_change(tmp_path):
    with pytest.raises(ValueError, match=r"mask\.updates\.every: 100 steps between two changes of rigl's mask.*at most 11"):
        make_plan(tiny_sweep(mask={"finder": "rigl"}))


def test_a_few_samples_of_each_class_are_of_all_classes(tmp_path):
    config = tiny_sweep()
    context = make_context(Store(tmp_path), load_data(config.data))
    labels = torch.cat([y for _, y in find._batches("snip", 10, context, 3)])
    assert labels.bincount(minlength=10).tolist() == [3] * 10
    everything = torch.cat([y for _, y in find._batches("snip", 10, context)])
    assert len(everything) == len(context.train)
