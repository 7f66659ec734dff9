"""What a search found, trained again: whose networks are pairs, and what several repeats make of it. Without Ray."""

import json
import types

import pandas as pd
import pytest

from raylth.config.load import BadSweep, read_sweep
from raylth.config.search import Space, edges, judging_base
from raylth.driver.run_record import Run
from raylth.driver.run_search import final_of, judged_by, what_is_searched
from raylth.driver.winners import SUMMARY, Winner, plan_of_winners, summary_of
from raylth.report import accuracy_table, contrast, load_results, paired_differences, render_table, write_report
from raylth.report.costs import cost_table
from raylth.report.repeats import crossed_mean
from raylth.report.searches import load_search, search_findings, search_table
from raylth.report.tables import dense_networks, finished_arms
from raylth.stages import make_plan, result_rows, run_plan
from raylth.store import Store
from tests.cluster.search.test_search import search_sweep

BASE = {"sparse.lr": 0.05}


def trained(tmp_path, params, **changes):
    """Train the winners of [{arm: params} per repeat], write their run, and return its folder and settings."""
    config = read_sweep(search_sweep(tmp_path, repeats=len(params), final={"replicates": 3}, **changes))
    winners = [
        Winner(arm, [arm], point, repeat, edges(config.search.space, point))
        for repeat, found in enumerate(params, start=1)
        for arm, point in found.items()
    ]
    final, store = final_of(config), Store(config.storage)
    plan = plan_of_winners(final, winners)
    graph = run_plan(plan, store)
    assert not graph.errors
    run = Run(final, store, "searched")
    run.write(result_rows(plan, graph, store, run.name), graph)
    trial = {"number": 0, "state": "complete", "is_best": True, "values": {"accuracy": 50.0}, "epochs": 3}
    studies = [
        {"study": arm, "repeat": winner.repeat, "trials": [{**trial, "params": winner.params, "edges": winner.edges}]}
        for winner in winners
        for arm in winner.arms
    ]
    (run.folder / SUMMARY).write(json.dumps({"holdout": 100, "objectives": ["accuracy"], "studies": studies}).encode())
    return run.folder


def page_of(folder):
    return write_report(folder, folder / "report").read().decode()


def test_winners_with_other_dense_settings_are_compared_unpaired(tmp_path):
    folder = trained(tmp_path, [{"lth": BASE, "permuted": {**BASE, "dense.lr": 0.02}, "naive": BASE}])
    results = load_results(folder)
    assert len(dense_networks(results)) == 12, "each arm's own; all in one run"
    arms = finished_arms(results)
    assert arms.groupby("replicate")["pair_key"].nunique().tolist() == [2, 2, 2]
    (row,) = contrast(results).to_dict("records")
    assert row["design"] == "unpaired"
    ours, theirs = (
        crossed_mean(arms[arms["arm"] == arm].set_index(["repeat", "replicate"])["test_accuracy"])
        for arm in ("permuted", "naive")
    )
    welch = (ours.error**2 + theirs.error**2) ** 0.5
    assert row["high"] - row["difference"] > 1.9 * welch
    page = page_of(folder)
    assert "unpaired, since the best settings give the arms other dense networks or masks; Welch" in page
    assert render_table(results, "a search").row_count == 1


@pytest.mark.parametrize("setting", [{"imp.lr": 0.05}, {"imp.prune_fraction": 0.3}])
def test_winners_with_other_masks_are_compared_unpaired(tmp_path, setting):
    folder = trained(tmp_path, [{"permuted": {**BASE, **setting}, "naive": BASE}])
    assert "unpaired" in search_findings(load_search(folder), load_results(folder))[-1]


def test_winners_that_share_their_networks_are_pairs_and_what_one_search_leaves_open_is_reported(tmp_path):
    folder = trained(tmp_path, [{"permuted": BASE, "naive": {"sparse.lr": 0.2}}])
    said = search_findings(load_search(folder), load_results(folder))[-1]
    assert "unpaired" not in said
    assert "(n = 3; one search: what another would have found is not in the interval, search.repeats counts it)" in said


def test_repeats_are_counted_each_also_where_two_found_the_same(tmp_path):
    """Three repeats; the first and the third found the same for naive: one training, and two of three repeats."""
    naive = [{"sparse.lr": 0.2}, {"sparse.lr": 0.02}, {"sparse.lr": 0.2}]
    permuted = [{"sparse.lr": rate} for rate in (0.05, 0.1, 0.999)]
    folder = trained(tmp_path, [{"permuted": p, "naive": n} for p, n in zip(permuted, naive, strict=True)])
    results = load_results(folder)
    sparse = results[results["stage"] == "sparse"]
    assert len(sparse) == 15
    assert sorted(sparse[sparse["arm"] == "naive"]["repeats"].unique()) == ["1,3", "2"]
    assert accuracy_table(results)["n"].tolist() == [9, 9]
    arms = finished_arms(results).set_index(["arm", "repeat", "replicate"])["test_accuracy"].astype(float)
    difference = (arms["permuted"] - arms["naive"]).rename("difference").reset_index()
    expected = crossed_mean(difference.set_index(["repeat", "replicate"])["difference"])
    (row,) = paired_differences(results).to_dict("records")
    assert (row["low"], row["difference"], row["high"]) == pytest.approx(
        (expected.interval[0], difference["difference"].mean(), expected.interval[1])
    )
    means = difference.groupby("repeat")["difference"].mean()
    page = page_of(folder)
    assert f"(n = 3; 3 independent searches: {', '.join(f'{value:+.1f}' for value in means)}; " in page
    assert "permuted 3: sparse.lr = 0.999 is at the upper end of its range (0.001 to 1)" in page
    assert len(search_table(load_search(folder))) == 6


def test_what_each_arm_costs_stands_beside_its_accuracy(tmp_path):
    folder = trained(tmp_path, [dict.fromkeys(("lth", "permuted", "naive"), BASE)])
    table = cost_table(load_results(folder)).set_index("label")
    assert list(table.index) == ["lth", "permuted", "naive"]
    parts = table[["A", "IMP", "B", "match", "own"]]
    assert parts.loc["lth"].tolist() == [4, 4, 0, 0, 3]
    assert parts.loc["permuted"].tolist() == pytest.approx([4, 4, 4, 2 / 3, 3])
    assert parts.loc["naive"].tolist() == [4, 4, 1, 0, 3]
    assert table["total"].tolist() == pytest.approx(parts.sum(axis=1).tolist())
    assert "What each arm costs" in page_of(folder)
    old = load_results(folder).drop(columns=["epochs_a", "epochs_imp", "epochs_b", "epochs_match", "pair_key", "repeats"])
    assert cost_table(old).empty, "results of before"
    assert len(paired_differences(old)) == 1


@pytest.mark.parametrize(
    ("space", "value", "end"),
    [
        ({"type": "float", "low": 0.01, "high": 1.0, "log": True}, 0.0109, "lower"),
        ({"type": "float", "low": 0.01, "high": 1.0, "log": True}, 0.011, None),
        ({"type": "float", "low": 0.01, "high": 1.0, "log": True}, 0.92, "upper"),
        ({"type": "float", "low": 0.01, "high": 1.0}, 0.92, None),
        ({"type": "float", "low": 0.0, "high": 1.0}, 0.02, "lower"),
        ({"type": "float", "low": -1.0, "high": 1.0}, 0.0, None),
        ({"type": "float", "low": 0.0, "high": 1.0, "step": 0.3}, 0.9, "upper"),
        ({"type": "float", "low": 0.0, "high": 1.0, "step": 0.3}, 0.6, None),
        ({"type": "int", "low": 1, "high": 3}, 1, "lower"),
        ({"type": "int", "low": 1, "high": 3}, 2, None),
        ({"type": "int", "low": 1, "high": 8, "step": 3}, 7, "upper"),
        ({"type": "int", "low": 1, "high": 1000, "log": True}, 1, "lower"),
        ({"type": "int", "low": 1, "high": 1000, "log": True}, 900, "upper"),
        ({"type": "categorical", "choices": [0.1, 0.2]}, 0.1, None),
    ],
)
def test_a_value_at_an_end_of_its_range_is_known(space, value, end):
    assert Space.model_validate(space).edge(value) == end


def test_seeds_of_the_winners_are_none_that_chose_them(tmp_path):
    file = search_sweep(tmp_path, repeats=3)
    config = read_sweep(file)
    bases = {judged_by(config, repeat).seeds.base for repeat in (1, 2, 3)} | {final_of(config).seeds.base}
    assert len(bases) == 4
    pairs = [{stage.labels["seed_a"] for stage in make_plan(part).stages}
             for part in (final_of(config), *(judged_by(config, repeat) for repeat in (1, 2, 3)))]  # fmt: skip
    assert len(set.union(*pairs)) == sum(map(len, pairs))
    with pytest.raises(
        BadSweep, match=r"search\.final\.base: 0 is seeds\.base, so the winners would be evaluated on the pairs"
    ):
        final_of(read_sweep(file, ["search.final.base=0"]))
    second = judging_base(0, 2)
    with pytest.raises(BadSweep, match=r"search\.final\.base: \d+ is the base seed of repeat 2"):
        judged_by(read_sweep(file, [f"search.final.base={second}"]))
    assert judged_by(read_sweep(file, [f"search.final.base={second}", "search.repeats=1"]))


def test_a_dry_run_counts_all_repeats(tmp_path):
    once, thrice = (read_sweep(search_sweep(tmp_path, repeats=repeats, trials=5)) for repeats in (1, 3))
    said = [what_is_searched(config) for config in (once, thrice)]
    epochs = [int(line.split("about ")[1].split()[0].replace(",", "")) for line in said]
    assert epochs[1] == 3 * epochs[0]
    assert "of the winners of one of 3 repeats" in said[1]
    assert "a search of 9 x 5 trials" in said[1]


def test_a_summary_has_repeats_edges_and_epochs():
    """As the journal has them, of a study made by hand."""
    trial = types.SimpleNamespace(
        number=0, state=types.SimpleNamespace(name="COMPLETE"), params={"sparse.lr": 1.0}, values=[70.0],
        user_attrs={"epochs": 3},
    )  # fmt: skip
    space = {"sparse.lr": Space(type="float", low=0.01, high=1.0, log=True)}
    search = types.SimpleNamespace(space=space, objectives=["accuracy"], holdout=5)
    study = types.SimpleNamespace(name="naive", repeat=2, search=search, winners=lambda: [trial], ended=lambda: [trial])
    ((found,),) = ([study["trials"] for study in summary_of([study])["studies"]],)
    assert found[0]["edges"] == ["sparse.lr = 1 is at the upper end of its range (0.01 to 1)"]
    assert found[0]["epochs"] == 3
    assert pd.DataFrame(found)["number"].tolist() == [0]
