"""Analyses: the sets of Table 1 and what is measured on them; lines from dense A to its pruned networks."""

import re

import pytest
import torch

from raylth.core.training.loop import evaluate
from raylth.driver.run_record import Run
from raylth.report import accuracy_table, imp_barriers, load_barriers, load_ensembles, load_results, write_report
from raylth.report.tables import imp_barrier_table
from raylth.stages import load_data, make_context, make_plan, result_rows, run_plan
from raylth.stages.training import load_network
from raylth.store import Store
from tests.conftest import tiny_sweep

SWEEP = {
    "data": {"name": "digits", "num_train": 200, "num_test": 90},
    "seeds": {"replicates": 3},
    "model": {"name": "resnet20", "widths": [0.25]},
    "dense": {"epochs": 2},
    "match": {"epochs": [2]},
    "sparse": {"arms": ["lth", "naive", "permuted"], "sparsities": [0.5], "rewinds": [1]},
}
LINE = {"points": 3, "corrections": ["plain", "reset"], "samples": 60}
ASKED = {"sparsity": 0.5, "rewind": 1, "members": 3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = tiny_sweep(**SWEEP, analyses={"ensemble": ASKED, "imp_line": LINE})
    plan, store = make_plan(config), Store(tmp_path_factory.mktemp("store"))
    graph = run_plan(plan, store)
    assert not graph.errors
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    return plan, store, run


def test_each_set_is_the_papers(finished):
    """imp: independent seeds; lth: one mask, one initialisation, other batches; the rest: one mask, B of each pair."""
    plan, _, _ = finished
    by_key = {stage.key: stage for stage in plan.stages}
    sets = {
        stage.labels["arm"]: [by_key[key] for key in stage.parents.values()]
        for stage in plan.stages
        if stage.kind == "ensemble"
    }
    assert {name: len(networks) for name, networks in sets.items()} == {"imp": 3, "lth": 3, "permuted": 3, "naive": 3}
    assert len({network.labels["seed_a"] for network in sets["imp"]}) == 3
    for name in ("lth", "permuted", "naive"):
        assert len({network.parents["mask"] for network in sets[name]}) == 1
    assert len({network.parents["weights"] for network in sets["lth"]}) == 1
    assert len({network.settings.seed for network in sets["lth"]}) == 3
    for name in ("permuted", "naive"):
        assert len({network.parents["weights"] for network in sets[name]}) == 3
    matches = [by_key[network.parents["permutation"]] for network in sets["permuted"]]
    assert len({match.key for match in matches}) == 3
    for network in (*matches, *sets["permuted"], *sets["naive"]):
        assert network.labels["seed_a"] == sets["permuted"][0].labels["seed_a"], "the row says whose mask it was"
    cells = {stage.key for stage in make_plan(tiny_sweep(**SWEEP, analyses={"imp_line": LINE})).stages}
    beyond = [stage for stage in plan.stages if stage.key not in cells]
    assert sorted(stage.kind for stage in beyond) == ["ensemble"] * 4 + ["match"] * 2 + ["sparse"] * 6


def test_what_is_measured_is_what_a_plain_loop_finds(finished):
    plan, store, run = finished
    context = make_context(store, load_data(plan.config.data))
    rows = load_ensembles(run.folder).set_index("arm")
    for stage in (stage for stage in plan.stages if stage.kind == "ensemble"):
        predictions = []
        for key in stage.parents.values():
            network = load_network(stage.settings.model, context, key).eval()
            with torch.no_grad():
                predictions.append(torch.softmax(network(context.test.probe(len(context.test))).double(), 1))
        together = sum(predictions) / 3
        row = rows.loc[stage.labels["arm"]]
        right = (together.argmax(1) == context.test.y).double().mean()
        assert row["ensemble_accuracy"] == pytest.approx(100 * float(right))
        differ = [(predictions[i].argmax(1) != predictions[j].argmax(1)).double().mean() for i, j in ((0, 1), (0, 2), (1, 2))]
        assert row["disagreement"] == pytest.approx(float(sum(differ)) / 3)
        assert row["members"] == 3
        assert 0 < row["js"] < row["kl"]


def test_networks_that_are_there_for_an_ensemble_do_not_enter_the_cells(finished):
    _, _, run = finished
    results = load_results(run.folder)
    assert results["member"].notna().sum() == 6
    table = accuracy_table(results)
    assert table["n"].tolist() == [3, 3, 3]
    page = write_report(run.folder, run.folder / "report").read().decode()
    assert "ensemble&#39;s accuracy, % (95 % interval)" in page
    (lth,) = [sentence for sentence in re.findall("<li>(.*?)</li>", page) if sentence.startswith("3 lth networks together")]
    row = load_ensembles(run.folder).set_index("arm").loc["lth"]
    assert f"reach {row['ensemble_accuracy']:.1f} %" in lth
    assert f"disagree on {100 * row['disagreement']:.0f} %" in lth


def test_a_line_runs_from_dense_a_to_every_round_of_imp(finished):
    plan, store, run = finished
    context = make_context(store, load_data(plan.config.data))
    rounds = {stage.key: stage for stage in plan.stages if stage.kind == "imp"}
    lines = [stage for stage in plan.stages if stage.kind == "connect"]
    assert {stage.parents["b"] for stage in lines} == set(rounds)
    for stage in lines:
        points = store.metrics(stage.key)["line"]
        for place, role in ((0, "a"), (1, "b")):
            loss, accuracy, _ = evaluate(load_network(stage.settings.model, context, stage.parents[role]), context.test)
            ends = [point for point in points if point["alpha"] == place and point["split"] == "test"]
            plain, reset = (next(end for end in ends if end["correction"] == name) for name in ("plain", "reset"))
            assert plain["loss"] == pytest.approx(loss, rel=1e-5), "the ends are the networks"
            assert plain["error"] == pytest.approx(100.0 - accuracy)
            assert reset["loss"] != pytest.approx(loss, rel=1e-5), "the ends are corrected, as the points between are"
            for row in (row for row in store.metrics(stage.key)["barriers"] if row["split"] == "test"):
                assert row[f"plain_loss_{role}"] == pytest.approx(loss, rel=1e-5)
                assert row[f"plain_error_{role}"] == pytest.approx(100.0 - accuracy)
        plain, reset = (
            next(p["loss"] for p in points if (p["alpha"], p["split"], p["correction"]) == (0.5, "test", name))
            for name in LINE["corrections"]
        )
        assert plain != reset, "ResNet-20 has batch norm to reset"
    rows = load_barriers(run.folder)
    assert len(rows) == len(lines) * 4
    assert set(rows["imp_round"]) == {stage.labels["imp_round"] for stage in rounds.values()}
    table = imp_barrier_table(rows)
    assert set(table["n"]) == {3}
    assert imp_barriers(rows, "t").axes[0].get_legend_handles_labels()[1] == LINE["corrections"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 4}, r"analyses.ensemble.members: 4 asked for, and seeds.replicates is 3"),
        ({"sparsity": 0.6}, r"analyses.ensemble.sparsity: 0.6 is not in sparse.sparsities"),
        ({"rewind": 0}, r"analyses.ensemble.rewind: 0 is not in sparse.rewinds"),
        ({"members": 1}, r"greater than or equal to 2"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_sweep(**SWEEP, analyses={"ensemble": {**ASKED, **changes}})


def test_several_sets_each_have_the_mask_of_another_pair_and_share_no_training_twice():
    asked = {"ensemble": {**ASKED, "members": 2, "repeats": 3}}
    plan = make_plan(tiny_sweep(**SWEEP, analyses=asked))
    by_key = {stage.key: stage for stage in plan.stages}
    sets = {}
    for stage in plan.stages:
        if stage.kind == "ensemble":
            sets.setdefault(stage.labels["arm"], {})[stage.labels["set_number"]] = [by_key[k] for k in stage.parents.values()]
    assert {name: sorted(found) for name, found in sets.items()} == {
        name: [0, 1, 2] for name in ("imp", "lth", "permuted", "naive")
    }
    for name in ("lth", "permuted", "naive"):
        masks = [{network.parents["mask"] for network in networks} for networks in sets[name].values()]
        assert [len(found) for found in masks] == [1, 1, 1], "each set has one mask"
        assert len(set.union(*masks)) == 3
        own = {stage.key for stage in plan.stages if stage.kind == "sparse" and stage.labels.get("member") is None}
        assert all(networks[0].key in own for networks in sets[name].values()), "the first of each is an arm of the sweep"
    all_three = {**SWEEP, "analyses": {"ensemble": {**ASKED, "repeats": 3}}}
    imp = [stage for stage in make_plan(tiny_sweep(**all_three)).stages if stage.labels.get("arm") == "imp"]
    assert len(imp) == 1, "the same three networks are one set"
    with pytest.raises(ValueError, match=r"ensemble.repeats: 4 asked for, and seeds.replicates is 3"):
        tiny_sweep(**SWEEP, analyses={"ensemble": {**ASKED, "repeats": 4}})


def test_what_is_left_open_is_what_the_sweep_has():
    open_ended = tiny_sweep(**SWEEP, analyses={"ensemble": {}}).measured.ensemble
    assert open_ended.model_dump() == {**ASKED, "repeats": 1, "sets": ["imp", "lth", "permuted", "naive"]}
    alone = {**SWEEP, "seeds": {"replicates": 1}}
    assert tiny_sweep(**alone, analyses={"ensemble": {}}).measured.ensemble is None, "one network is no ensemble"
    few = {**SWEEP, "sparse": {**SWEEP["sparse"], "arms": ["naive"], "sparsities": [0.9, 0.95]}}
    found = tiny_sweep(**few, analyses={"ensemble": {}}).measured.ensemble
    assert (found.sparsity, found.sets) == (0.9, ["imp", "naive"])


def test_a_set_needs_its_arm():
    without = {**SWEEP, "sparse": {**SWEEP["sparse"], "arms": ["lth", "permuted"]}}
    with pytest.raises(ValueError, match=r"analyses.ensemble.sets: naive is not among sparse.arms"):
        tiny_sweep(**without, analyses={"ensemble": {**ASKED, "sets": ["naive"]}})
