"""What a sparse network shares with other arms, and what it cost: against what the plan's settings say by hand."""

import itertools

import pytest

from raylth.config.overrides import changed
from raylth.stages import Graph, make_plan
from raylth.stages.lineage import lineage
from tests.conftest import tiny_sweep

CELL = ("width", "sparsity", "rewind_epoch", "replicate")


def lineages(config):
    """(labels, lineage) of every sparse network of a sweep."""
    plan = make_plan(config)
    graph = Graph(plan.stages)
    return [(stage.labels, lineage(stage, graph)) for stage in plan.stages if stage.kind == "sparse"]


def pair_keys(config, arm):
    return {
        tuple(labels[name] for name in CELL): found["pair_key"] for labels, found in lineages(config) if labels["arm"] == arm
    }


def test_all_arms_of_a_cell_and_replicate_are_pairs_and_no_others():
    config = tiny_sweep(seeds={"replicates": 2}, model={"widths": [0.25, 0.5]}, match={"method": ["activation", "random"]})
    cells = {}
    for labels, found in lineages(config):
        cells.setdefault((labels["width"], labels["sparsity"], labels["replicate"]), set()).add(found["pair_key"])
    assert all(len(keys) == 1 for keys in cells.values()), "the rewind point does not part pairs, nor does the match"
    for a, b in itertools.combinations(cells, 2):
        assert cells[a] != cells[b]


@pytest.mark.parametrize(
    ("setting", "value", "are_pairs"),
    [
        ("sparse.lr", 0.5, True),
        ("sparse.weight_decay", 0.0, True),
        ("match.method", "weight", True),
        ("match.samples", 100, True),
        ("dense.lr", 0.02, False),
        ("dense.weight_decay", 0.0, False),
        ("dense.epochs", 5, False),
        ("imp.lr", 0.02, False),
        ("imp.prune_fraction", 0.25, False),
        ("seeds.base", 1, False),
    ],
)
def test_arms_with_other_settings_are_pairs_where_those_change_neither_network_nor_mask(setting, value, are_pairs):
    """As of a search's winners, each planned with its own arm alone."""
    config = tiny_sweep(match={"epochs": None})
    lth = pair_keys(changed(config, {"sparse.arms": ["lth"]}), "lth")
    for arm in ("permuted", "naive", "random"):
        other = pair_keys(changed(config, {"sparse.arms": [arm], setting: value}), arm)
        assert other.keys() == lth.keys()
        assert [other[cell] == lth[cell] for cell in lth] == [are_pairs] * len(lth)


def test_what_a_network_cost_is_what_the_sweep_says():
    """T = 4; A is pruned by 20 % a round, so 30 % takes 2 rounds and 50 % takes 4, of 1 epoch each."""
    half = tiny_sweep().data.num_train // 2
    config = tiny_sweep(match={"epochs": [2, 4], "method": ["activation", "learned"], "samples": half, "learned_epochs": 3})
    rounds = {0.3: 2, 0.5: 4}
    for labels, found in lineages(config):
        arm, k, matched_at = labels["arm"], labels["rewind_epoch"], labels["match_epoch"]
        b = 0 if arm == "lth" else max(k, matched_at or 0)
        passes = {"activation": 2 / 3, "learned": 3.0}.get(labels["match_method"], 0.0)  # of half of the samples
        expected = {"epochs_a": 4, "epochs_imp": rounds[labels["sparsity"]], "epochs_b": b, "epochs_match": passes / 2}
        assert {name: found[name] for name in expected} == pytest.approx(expected), labels


def test_all_arms_together_need_no_more_than_the_sweep_trains():
    """What is counted for each arm alone is, for the one that needs most, no more than all that is planned."""
    config = tiny_sweep()
    planned = sum(stage.epochs for stage in make_plan(config).stages)
    for labels, found in lineages(config):
        own = 4 - labels["rewind_epoch"]
        assert own + found["epochs_a"] + found["epochs_imp"] + found["epochs_b"] <= planned
