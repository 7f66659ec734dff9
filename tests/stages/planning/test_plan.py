import pytest

from raylth.core.masks import full_mask
from raylth.core.models import init_model
from raylth.stages import make_plan
from tests.conftest import tiny_sweep

KINDS = ("dense", "imp", "match", "sparse")


def keys(plan, kind=None):
    return [stage.key for stage in plan.stages if kind in (None, stage.kind)]


def test_where_and_how_fast_never_enters_a_key():
    elsewhere = tiny_sweep(
        name="other",
        storage="/somewhere/else",
        resources={"dense": {"cpus": 2, "gpus": 0.5}, "checkpoint_actors": 3},
        log={"evaluate_every": 1},
    )
    assert keys(make_plan(tiny_sweep())) == keys(make_plan(elsewhere))


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"seeds": {"base": 1}}, {"dense", "imp", "match", "sparse"}),
        ({"dense": {"lr": 0.07}}, {"dense", "imp", "match", "sparse"}),
        ({"dense": {"drop_last": False}}, {"dense", "imp", "match", "sparse"}),
        ({"dense": {"lr_interval": "epoch"}}, {"dense", "imp", "match", "sparse"}),
        ({"model": {"init": "torch"}}, {"dense", "imp", "match", "sparse"}),
        ({"imp": {"momentum": 0.0}}, {"imp", "sparse"}),
        ({"imp": {"drop_last": False}}, {"imp", "sparse"}),
        ({"imp": {"prune_shortcuts": True}}, {"imp", "sparse"}),
        ({"match": {"samples": 100}}, {"match", "sparse"}),
        ({"sparse": {"lr": 0.01}}, {"sparse"}),
        ({"sparse": {"drop_last": False}}, {"sparse"}),
        ({"sparse": {"schedule": "rewound"}}, {"sparse"}),
        ({"data": {"num_test": 100}}, {"dense", "imp", "match", "sparse"}),
    ],
)
def test_a_science_setting_moves_its_stage_and_all_below(change, moved):
    before, after = make_plan(tiny_sweep()), make_plan(tiny_sweep(**change))
    for kind in KINDS:
        old, new = set(keys(before, kind)), set(keys(after, kind))
        if kind not in moved:
            assert old == new, kind
        elif kind == "sparse" and "match" in change:  # only the permuted arm reads the match
            stays = {stage.key for stage in before.stages if stage.kind == kind and stage.labels["arm"] != "permuted"}
            assert old & new == stays
            assert stays != old
        else:
            assert not old & new, kind


def test_dense_networks_are_trained_once_whatever_the_number_of_sparsities():
    one = make_plan(tiny_sweep(sparse={"sparsities": [0.5]}))
    many = make_plan(tiny_sweep(sparse={"sparsities": [0.3, 0.5, 0.7, 0.8]}))
    assert keys(one, "dense") == keys(many, "dense")
    assert set(keys(one, "imp")) <= set(keys(many, "imp")), "the trunk is not shared"


def test_table_5_needs_1300_dense_and_imp_epochs_per_seed():
    """200 + 200 dense epochs and the rounds of one trunk, not 4,000 epochs of pre-training."""
    config = tiny_sweep(
        data={"name": "cifar10", "root": "unused", "num_train": None, "num_test": None},
        model={"name": "resnet20", "widths": [1]},
        dense={"epochs": 200},
        imp={"epochs_per_round": 50},
        match={"epochs": None},
        sparse={"sparsities": [0.8, 0.9, 0.95, 0.97], "rewinds": [0], "arms": ["lth", "naive", "permuted"]},
    )
    plan = make_plan(config)
    landings = [stage for stage in plan.stages if stage.labels.get("landing")]
    trunk = [stage for stage in plan.stages if stage.kind == "imp" and not stage.labels["landing"]]
    assert (len(trunk), len(landings)) == (15, 4)
    assert sum(stage.epochs for stage in plan.stages if stage.kind == "dense") == 400


def test_k_counts_completed_epochs_and_an_arm_trains_the_rest():
    plan = make_plan(tiny_sweep())
    for stage in plan.stages:
        if stage.kind == "sparse":
            assert stage.epochs == 4 - stage.labels["rewind_epoch"]
            assert stage.settings.recipe.epochs == stage.epochs


def test_only_what_an_arm_needs_is_planned():
    plan = make_plan(tiny_sweep(sparse={"arms": ["lth"]}))
    assert plan.count("match") == 0
    assert [stage.labels["network"] for stage in plan.stages if stage.kind == "dense"] == ["A"]


def test_arms_are_paired_and_b_never_depends_on_a():
    plan = make_plan(tiny_sweep(seeds={"replicates": 2}))
    by_cell: dict = {}
    for stage in plan.stages:
        if stage.kind == "sparse":
            cell = (stage.labels["replicate"], stage.labels["sparsity"], stage.labels["rewind_epoch"])
            by_cell.setdefault(cell, set()).add(stage.settings.seed)
    assert all(len(seeds) == 1 for seeds in by_cell.values()), "the arms of a cell must share their data order"
    dense = {(s.labels["replicate"], s.labels["network"]): s.settings.init_seed for s in plan.stages if s.kind == "dense"}
    assert len(set(dense.values())) == 4
    longer = make_plan(tiny_sweep(seeds={"replicates": 2}, dense={"epochs": 5}, match={"epochs": None}))
    again = {(s.labels["replicate"], s.labels["network"]): s.settings.init_seed for s in longer.stages if s.kind == "dense"}
    assert dense == again


def test_parents_come_before_children_and_every_parent_is_planned():
    seen: set[str] = set()
    for stage in make_plan(tiny_sweep(seeds={"replicates": 2}, model={"widths": [0.25, 0.5]})).stages:
        assert set(stage.parents.values()) <= seen, stage.name
        seen |= set(stage.produces)


def test_what_most_waits_for_comes_first_among_its_kind():
    """The networks that are pruned before those that are not; no pair's rounds before another's earlier ones."""
    plan = make_plan(tiny_sweep(seeds={"replicates": 3}))
    dense = [stage.labels["network"] for stage in plan.stages if stage.kind == "dense"]
    assert dense == ["A"] * 3 + ["B"] * 3
    trunk = [stage for stage in plan.stages if stage.kind == "imp" and not stage.labels["landing"]]
    rounds = [stage.labels["imp_round"] for stage in trunk]
    assert rounds == sorted(rounds)
    assert [stage.labels["replicate"] for stage in trunk[:3]] == [0, 1, 2]


def test_a_sparsity_that_the_trunk_hits_exactly_needs_no_landing():
    model = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,))
    total = sum(alive.numel() for alive in full_mask(model).values())
    exact = round(0.2 * total) / total
    plan = make_plan(tiny_sweep(sparse={"sparsities": [exact]}))
    assert [stage.labels["landing"] for stage in plan.stages if stage.kind == "imp"] == [False]


def test_each_matching_method_has_its_own_match_and_permuted_arms_and_only_the_settings_it_reads():
    methods = ["activation", "weight", "learned", "identity", "random"]
    plan = make_plan(tiny_sweep(match={"epochs": [4], "method": methods}, sparse={"sparsities": [0.5], "rewinds": [0]}))
    matches = {stage.settings.method: stage for stage in plan.stages if stage.kind == "match"}
    assert list(matches) == methods
    assert set(matches["identity"].settings.plain()) == {"model", "data", "method"}
    assert set(matches["weight"].settings.plain()) == {"model", "data", "method", "seed"}
    assert matches["activation"].settings.own == {"sites": "post_activation", "stream_site": {}}
    permuted = [stage for stage in plan.stages if stage.labels.get("arm") == "permuted"]
    assert [stage.labels["match_method"] for stage in permuted] == methods
    other = make_plan(tiny_sweep(match={"epochs": [4], "method": methods, "samples": 100, "sites": "pre_activation"}))
    moved = {stage.settings.method for stage in other.stages if stage.kind == "match"} - {
        stage.settings.method for stage in other.stages if stage.key in keys(plan, "match")
    }
    assert moved == {"activation", "learned"}
