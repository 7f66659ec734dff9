"""Every built-in finder in a whole study."""

import pytest
import torch

from raylth.core.pruning import FINDERS
from raylth.stages import load_data, make_context, make_plan, run_plan
from raylth.stages.kinds import find
from raylth.store import Store
from tests.conftest import tiny_sweep


@pytest.mark.parametrize("name", sorted(set(FINDERS) - {"imp"}))
def test_a_study_of_its_masks(name, tmp_path):
    arms = ["lth", "naive", "permuted", "random_permutation"]
    config = tiny_sweep(
        mask={"finder": name}, sparse={"arms": arms, "sparsities": [0.5, 0.9], "rewinds": [0]}, match={"epochs": [4]}
    )
    plan, store = make_plan(config), Store(tmp_path)
    graph = run_plan(plan, store)
    assert not graph.errors
    found = {stage.settings.sparsity: stage for stage in plan.stages if stage.kind == "find"}
    assert set(found) == {0.5, 0.9}
    for sparsity, stage in found.items():
        mask = store.tensors(stage.key, "mask")
        total = sum(alive.size for alive in mask.values())
        assert sum(int(alive.sum()) for alive in mask.values()) == total - round(sparsity * total)
    again = Store(tmp_path / "again")
    run_plan(plan, again)
    for stage in found.values():
        assert store.files(stage.key) == again.files(stage.key)
        assert (store.read(stage.key, "mask") == again.read(stage.key, "mask")).all()
    trained = {(stage.labels["arm"], stage.labels["sparsity"]) for stage in plan.stages if stage.kind == "sparse"}
    assert trained == {(arm, sparsity) for arm in arms for sparsity in (0.5, 0.9)}


def test_a_few_samples_of_each_class_are_of_all_classes(tmp_path):
    config = tiny_sweep()
    context = make_context(Store(tmp_path), load_data(config.data))
    labels = torch.cat([y for _, y in find._batches("snip", 10, context, 3)])
    assert labels.bincount(minlength=10).tolist() == [3] * 10
    everything = torch.cat([y for _, y in find._batches("snip", 10, context)])
    assert len(everything) == len(context.train)
