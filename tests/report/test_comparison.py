"""Runs side by side: against SciPy, on stores of a few rows."""

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raylth.cli.compare import main
from raylth.report import mean_effects
from raylth.report.estimates import holm
from raylth.results import compare
from raylth.store import locate
from raylth.store.tables import write_table
from tests.report.test_statistics import ARMS, PLANNED, of_arm, sweep

COMPARED = [("lth", "naive"), *PLANNED]

CONFIG = {"data": {"name": "mnist1d"}, "model": {"name": "mlp", "options": {}}, "seeds": {"base": 0}, "dense": {"lr": 0.08}}
SHARED = {"seed_a": 1, "seed_b": 2, "data_sha256": "0" * 64}


def write(store, name, results, barriers=(), **config):
    """Write a run of these rows, whose settings are CONFIG and these; returns its folder."""
    manifest = {"run": f"{name}-1", "written": "2026-11-21", "config": {"name": name, **CONFIG, **config}, "stages": {}}
    rows = results.assign(run=f"{name}-1").astype(object).where(results.assign(run="").notna(), None)
    place = locate(store)
    write_table(place, "results", f"{name}-1", rows.to_dict("records"), manifest)
    write_table(place, "barriers", f"{name}-1", list(barriers), manifest)
    (place / "runs" / f"{name}-1" / "manifest.json").write(json.dumps(manifest).encode())
    return f"{store}/runs/{name}-1"


def by_run(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    return [table[table["run"] == run].iloc[0] for run in dict.fromkeys(table["run"])]


def test_runs_with_the_same_networks_are_compared_by_pairs(tmp_path):
    """Each difference is a paired t-test over replicates; of contrasts over their means over cells."""
    one, other = sweep(seed=1, **SHARED), sweep(seed=2, **SHARED)
    found = compare([write(tmp_path, "one", one), write(tmp_path, "other", other, imp={"lr": 0.1})])
    assert found.runs == ("one", "other")
    assert found.settings.to_dict("records") == [{"setting": "imp.lr", "one": "not set", "other": "0.1"}]
    first, second = by_run(found.accuracy, label="naive", sparsity=0.9, rewind_epoch=10)
    ours, theirs = (of_arm(results, "naive")[0.9, 10] for results in (one, other))
    expected = stats.ttest_rel(theirs, ours)
    assert (first["mean"], first["std"], first["n"]) == (pytest.approx(ours.mean()), pytest.approx(ours.std()), 4)
    assert pd.isna(first["difference"])
    assert (second["difference"], second["p"]) == pytest.approx(((theirs - ours).mean(), expected.pvalue))
    assert (second["low"], second["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (second["design"], second["pairs"]) == ("paired", 4)
    for label, against in COMPARED:
        effects = [(of_arm(run, label) - of_arm(run, against)).mean(axis=1) for run in (one, other)]
        first, second = by_run(found.contrasts, label=label, against=against)
        expected = stats.ttest_rel(effects[1], effects[0])
        for row, effect in zip((first, second), effects, strict=True):
            assert row["effect"] == pytest.approx(effect.mean())
            interval = stats.ttest_1samp(effect, 0).confidence_interval(0.95)
            assert (row["effect_low"], row["effect_high"]) == pytest.approx(tuple(interval))
            assert (row["cells"], row["n"]) == (4, 4)
        assert (second["low"], second["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert (second["difference"], second["p"]) == pytest.approx(((effects[1] - effects[0]).mean(), expected.pvalue))
    changes = found.contrasts.dropna(subset="p")
    assert changes["p_holm"].tolist() == pytest.approx(holm(changes["p"]).tolist())
    assert len(found.contrast_cells) == 2 * len(COMPARED) * 4
    first, second = by_run(found.contrast_cells, label="lth", against="naive", sparsity=0.8, rewind_epoch=0)
    pairs = [(of_arm(run, "lth") - of_arm(run, "naive"))[0.8, 0] for run in (one, other)]
    assert second["p"] == pytest.approx(stats.ttest_rel(*pairs).pvalue)


@pytest.mark.parametrize(
    ("change", "config"),
    [
        ({}, {"model": {"name": "mlp", "options": {"asymmetric": True}}}),
        ({"seed_b": 3}, {}),
        ({"data_sha256": "1" * 64}, {}),
        ({}, {"search": {"trials": 3}}),
        ({"seed_a": None, "seed_b": None}, {}),
    ],
)
def test_runs_with_other_networks_are_compared_by_welch(tmp_path, change, config):
    one, other = sweep(seed=1, **SHARED), sweep(seed=2, **{**SHARED, **change})
    found = compare([write(tmp_path, "one", one), write(tmp_path, "other", other, **config)])
    assert set(found.accuracy["design"].dropna()) == set(found.contrasts["design"].dropna()) == {"unpaired"}
    second = by_run(found.accuracy, label="lth", sparsity=0.8, rewind_epoch=0)[1]
    ours, theirs = (of_arm(results, "lth")[0.8, 0] for results in (one, other))
    expected = stats.ttest_ind(theirs, ours, equal_var=False)
    assert (second["low"], second["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    second = by_run(found.contrasts, label="permuted", against="naive")[1]
    effects = [(of_arm(run, "permuted") - of_arm(run, "naive")).mean(axis=1) for run in (one, other)]
    expected = stats.ttest_ind(effects[1], effects[0], equal_var=False)
    assert (second["low"], second["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert second["p"] == pytest.approx(expected.pvalue)


def test_the_record_of_a_pair_counts_whatever_the_settings_say(tmp_path):
    """`pair_key` says that two networks share A, B and A's mask; a search's settings do not."""
    keyed = [sweep(seed=seed, **SHARED) for seed in (1, 2)]
    keyed = [each.assign(pair_key=each["replicate"].astype(str)) for each in keyed]
    found = compare([write(tmp_path, name, each, search={}) for name, each in zip("ab", keyed, strict=True)])
    assert set(found.accuracy["design"].dropna()) == {"paired"}
    found = compare(
        [write(tmp_path, "c", keyed[0], search={"trials": 2}), write(tmp_path, "d", keyed[1], search={"trials": 2})]
    )
    assert set(found.accuracy["design"].dropna()) == {"paired"}


def test_only_what_all_runs_have_is_compared(tmp_path):
    """Cells, arms and replicates; each mean is that of the run's own networks."""
    cells = [(0.8, 0), (0.9, 10)]
    one, other = sweep(seed=1, **SHARED), sweep({name: ARMS[name] for name in ("lth", "naive")}, 3, cells, seed=2, **SHARED)
    third = sweep(seed=3, cells=[(0.9, 10)], **SHARED)
    found = compare([write(tmp_path, name, each) for name, each in zip("cab", (third, one, other), strict=True)])
    assert found.runs == ("c", "a", "b")
    assert set(found.accuracy["label"]) == {"lth", "naive"}
    assert set(zip(found.accuracy["sparsity"], found.accuracy["rewind_epoch"], strict=True)) == {(0.9, 10)}
    assert found.accuracy["n"].tolist() == [4, 4, 3] * 2
    assert found.accuracy["pairs"].dropna().tolist() == [4, 3] * 2
    (label,) = set(zip(found.contrasts["label"], found.contrasts["against"], strict=True))
    assert label == ("lth", "naive")
    assert (found.contrasts["cells"].tolist(), found.contrasts["n"].tolist()) == ([1] * 3, [4, 4, 3])


def test_one_run_beside_itself_under_another_name_differs_in_nothing(tmp_path):
    results = sweep(**SHARED)
    found = compare([write(tmp_path / "x", "one", results), write(tmp_path / "y", "one", results)])
    assert found.runs == ("x/one-1", "y/one-1")
    assert found.settings.empty
    assert (found.accuracy["difference"].dropna() == 0).all()
    assert (found.contrasts["p_holm"].dropna() == 1).all()
    effects = mean_effects(results).set_index(["label", "against"])
    for row in found.contrasts.itertuples():
        if (row.label, row.against) in effects.index:
            assert row.effect == pytest.approx(effects.loc[(row.label, row.against), "difference"])


def test_what_an_earlier_version_does_not_mention_is_no_difference(tmp_path):
    """Its settings lack what was added later, and its rows may lack columns."""
    later = {"dense": {**CONFIG["dense"], "optimizer": {"name": "sgd", "betas": [0.9, 0.999], "eps": 1e-8}}}
    one, other = sweep(seed=1, **SHARED), sweep(seed=2, **SHARED)
    found = compare([write(tmp_path, "one", one, **later), write(tmp_path, "other", other)])
    assert found.settings.empty
    assert set(found.accuracy["design"].dropna()) == {"paired"}
    bare = other.drop(columns=[name for name in ("seed_a", "data_sha256", "pair_key") if name in other])
    found = compare([write(tmp_path, "one", one), write(tmp_path / "old", "bare", bare)])
    assert set(found.accuracy["design"].dropna()) == {"unpaired"}


def line(replicate, barrier, between="A - B", **values):
    return {
        "key": f"{between}{replicate}{barrier}", "between": between, "width": 1.0, "replicate": replicate,
        "correction": "plain", "split": "test", "error_barrier": barrier, "error_mid": barrier - 1,
        "loss_barrier": 0.1, "loss_mid": 0.1, **values,
    }  # fmt: skip


def test_barriers_stand_side_by_side(tmp_path):
    values = np.array([1.0, 2.0, 4.5])
    one = write(tmp_path, "one", sweep(), [line(n, value) for n, value in enumerate(values)] + [line(0, 3.0, "pi(A) - B")])
    other = write(tmp_path, "other", sweep(), [*(line(n, 9.0 + n) for n in range(3)), line(0, 50.0, split="train")])
    found = compare([one, other]).barriers
    assert found["between"].tolist() == ["A - B"] * 2
    assert found["error_barrier"].tolist() == pytest.approx([2.5, 10.0])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (found["error_barrier_low"][0], found["error_barrier_high"][0]) == pytest.approx((max(0, low), high))


class Cells(HTMLParser):
    """The text of every cell of a page's tables."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.cells.append(data)


def test_the_command_prints_tables_and_writes_a_page(tmp_path, capsys):
    one, other = sweep(seed=1, **SHARED), sweep(seed=2, **SHARED)
    runs = [write(tmp_path, "one", one), write(tmp_path, "<two>", other, dense={"lr": 0.1})]
    assert main([*runs, "--html", str(tmp_path / "page.html")]) == 0
    text, page = capsys.readouterr().out, Cells((tmp_path / "page.html").read_text()).cells
    found = compare(runs)
    first, second = by_run(found.contrasts, label="lth", against="naive")
    own = f"{first['effect']:+.1f} ({first['effect_low']:+.1f} to {first['effect_high']:+.1f})"
    change = f"{second['difference']:+.1f} ({second['low']:+.1f} to {second['high']:+.1f})"
    mean = by_run(found.accuracy, label="lth", sparsity=0.9, rewind_epoch=0)[0]
    for shown in (
        "lth - naive",
        own,
        change,
        "dense.lr",
        "<two> - one (points, unpaired)",
        f"{mean['mean']:.1f} ± {mean['std']:.1f}",
    ):
        assert shown in text
        assert shown in page
    cell = by_run(found.contrast_cells, label="lth", against="naive", sparsity=0.9, rewind_epoch=0)[1]
    assert f"{cell['difference']:+.1f} ({cell['low']:+.1f} to {cell['high']:+.1f})" in page
    assert f"page: {tmp_path}/page.html" in text


def test_where_some_differences_are_of_pairs_the_others_say_that_they_are_not(tmp_path, capsys):
    one, same, other = (
        sweep(seed=seed, cells=[(0.9, 0)], **{**SHARED, "seed_a": seed_a}) for seed, seed_a in ((1, 1), (2, 1), (3, 5))
    )
    runs = [write(tmp_path, name, each) for name, each in (("one", one), ("same", same), ("other", other))]
    assert main(runs) == 0
    text = capsys.readouterr().out
    rows = by_run(compare(runs).accuracy, label="lth")
    for row, suffix in zip(rows[1:], (" ", ", unpaired "), strict=True):
        assert f"{row['difference']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f}){suffix}" in text


def test_a_store_with_one_run_is_that_run(tmp_path):
    write(tmp_path / "a", "one", sweep())
    write(tmp_path / "b", "two", sweep(seed=1))
    assert compare([tmp_path / "a", f"{tmp_path}/b/"]).runs == ("one", "two")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["one", "none"], "{}/none: no run here; expected {}/none/manifest.json, or a store with one run"),
        (["one"], "a comparison needs two runs or more"),
        (["one", "one/runs/one-1/"], "{}/one/runs/one-1: named twice"),
        (["one", "several"], "{}/several: has 2 runs, name one: runs/b-1, runs/c-1"),
        (
            ["one", "narrow"],
            "no arm of these runs has a cell in all of them (one: lth, permuted, naive, random_permutation, random at width "
            "1, sparsity 0.8, 0.9, rewind point 0, 10; narrow: lth at width 1, sparsity 0.5, rewind point 0)",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, places, message):
    write(tmp_path / "one", "one", sweep())
    write(tmp_path / "narrow", "narrow", sweep({"lth": 60.0}, cells=[(0.5, 0)]))
    for name in "bc":
        write(tmp_path / "several", name, sweep())
    assert main([str(tmp_path / place) if not place.endswith("/") else f"{tmp_path}/{place}" for place in places]) == 2
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", message.replace("{}", str(tmp_path)) + "\n")


def test_a_notebook_shows_a_comparison(tmp_path):
    one, other = sweep(), sweep(seed=1)
    found = compare([write(tmp_path, "one", one), write(tmp_path, "other", other)])
    page = found._repr_html_()
    for name in ("settings", "accuracy", "contrasts", "barriers"):
        assert (f"<h4>{name}</h4>" in page) == bool(len(getattr(found, name))), name
    for value in (*found.accuracy["mean"], *found.contrasts["effect"]):
        assert f"<td>{round(value, 3):.3f}</td>" in page
