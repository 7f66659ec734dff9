"""What the page is given equals the Parquet, by an independent computation; runs with little to show are shown."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

from raylth.arms import ARMS, BUILT_IN
from raylth.report import accuracy_table, barrier_table, findings, load_barriers, load_results
from raylth.report.labels import readable
from raylth.serve.data import MARKS, cell_id, curves_data, run_data
from raylth.serve.figures import figures_data
from raylth.serve.progress import progress_of, sweeps_of
from raylth.store import locate
from raylth.store.tables import write_table
from tests.serve import stores
from tests.serve.stores import BEGUN, LIVE, OLD, PARTS, STUDY

CELL = ["width", "sparsity", "rewind_epoch"]


def rows_of(store, dataset, run=STUDY):
    """A run's Parquet as pandas reads it, without this package."""
    return pq.read_table(store.path / dataset / f"{run}.parquet").to_pandas()


def interval(values):
    """The mean's 95 % interval of Student's t."""
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


@pytest.fixture(scope="module")
def data(store):
    found = run_data(store / "runs" / STUDY)
    return json.loads(json.dumps(found, allow_nan=False))


def test_accuracies_are_means_with_their_intervals(store, data):
    results = rows_of(store, "results")
    results = results[(results["stage"] == "sparse") & (results["status"] == "done")]
    found = pd.DataFrame(data["accuracy"])
    assert len(found) == len(stores.ARMS) * 12
    for row in found.to_dict("records"):
        mine = results[(results[CELL] == [row[name] for name in CELL]).all(axis=1) & (results["arm"] == row["label"])]
        accuracy = mine["test_accuracy"]
        assert row["n"] == len(accuracy)
        assert row["mean"] == pytest.approx(accuracy.mean(), rel=1e-12)
        assert (row["low"], row["high"]) == pytest.approx(interval(accuracy), rel=1e-9)
        assert row["mean"] - row["minus"] == pytest.approx(row["low"])
        assert row["mean"] + row["plus"] == pytest.approx(row["high"])
    lost = found[found["lost"] > 0].to_dict("records")
    assert [(row["label"], row["width"], row["sparsity"], row["rewind_epoch"], row["n"]) for row in lost] == [
        ("naive", 2.0, 0.95, 10, 2)
    ]
    assert stores.REASON in data["lost"]["rows"][0]


def test_contrasts_are_those_of_a_paired_t_test(store, data):
    results = rows_of(store, "results")
    wide = results[results["stage"] == "sparse"].pivot(index=[*CELL, "replicate"], columns="arm", values="test_accuracy")
    found = pd.DataFrame(data["contrasts"])
    assert set(zip(found["label"], found["against"], strict=True)) == {("permuted", "naive"), ("lth", "permuted")}
    for row in found.to_dict("records"):
        pairs = wide.loc[tuple(row[name] for name in CELL)][[row["label"], row["against"]]].dropna()
        test = stats.ttest_rel(pairs[row["label"]], pairs[row["against"]])
        assert row["difference"] == pytest.approx((pairs[row["label"]] - pairs[row["against"]]).mean())
        assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert (row["n"], row["design"]) == (len(pairs), "paired")
    complete = wide.dropna().groupby(level=CELL).filter(lambda cell: len(cell) == 3)
    means = (complete["permuted"] - complete["naive"]).groupby("replicate").mean()
    effect = pd.DataFrame(data["effects"]).set_index(["label", "against"]).loc[("permuted", "naive")]
    assert effect["difference"] == pytest.approx(means.mean())
    assert (effect["low"], effect["high"]) == pytest.approx(interval(means))
    assert (effect["cells"], effect["cells_all"]) == (11, 12), "without the cell that lost a network"


def test_curves_are_means_over_replicates(store):
    results, curves = rows_of(store, "results"), rows_of(store, "curves")
    cells = curves_data(store / "runs" / STUDY)
    assert len(cells) == 12
    found = pd.DataFrame(cells[cell_id(2.0, 0.9, 10)])
    assert set(found["label"]) == {"dense", *stores.ARMS}
    for measure in ("train_loss", "test_accuracy"):
        is_cell = (results[CELL] == [2.0, 0.9, 10]).all(axis=1)
        for label, mine in {
            "naive": results[is_cell & (results["arm"] == "naive")],
            "dense": results[(results["stage"] == "dense") & (results["width"] == 2.0)],
        }.items():
            expected = curves[curves["key"].isin(mine["key"])].groupby("epoch")[measure].agg(["mean", "std", "count"])
            shown = found[(found["label"] == label) & (found["measure"] == measure)].set_index("epoch")
            np.testing.assert_allclose(shown[["mean", "std", "n"]], expected)
            np.testing.assert_allclose(shown["upper"] - shown["lower"], 2 * expected["std"])
    narrow = pd.DataFrame(cells[cell_id(1.0, 0.9, 10)])
    assert set(narrow["measure"]) == {"train_loss"}, "accuracy was not measured on the way there"


def test_lines_are_means_with_their_range(store, data):
    lines = rows_of(store, "lines")
    lines = lines[lines["split"] == "test"]
    found = pd.DataFrame(data["lines"])
    names = {"π⁻¹(permuted) - lth, width 2, S = 0.9, k = 10", "π(A) - B, width 2", "π(A) - B, width 1"}
    assert names < {name.removesuffix(", activation") for name in found["name"]}
    assert len(found) == 2 * 2 * 2 * 5
    for row in found.to_dict("records"):
        is_mine = lines["between"].eq(row["between"]) & lines["width"].eq(row["width"]) & lines["alpha"].eq(row["alpha"])
        errors = lines[is_mine & lines["correction"].eq(row["correction"])]["error"]
        assert (row["mean"], row["low"], row["high"], row["n"]) == pytest.approx(
            (errors.mean(), errors.min(), errors.max(), 3)
        )


def test_dense_networks_have_their_mean(store, data):
    results = rows_of(store, "results")
    for row in pd.DataFrame(data["dense"]).to_dict("records"):
        accuracy = results[(results["stage"] == "dense") & (results["width"] == row["width"])]["test_accuracy"]
        assert (row["mean"], row["low"], row["high"], row["n"]) == pytest.approx((accuracy.mean(), *interval(accuracy), 6))


def test_tables_and_findings_are_the_reports(store, data):
    run = store / "runs" / STUDY
    results, barriers = load_results(run), load_barriers(run)
    tables = {table["name"]: table for table in data["tables"]}
    assert list(tables) == ["accuracy", "effects", "difference", "recovered", "barriers", "lines"]
    assert len(tables["barriers"]["rows"]) == len(barrier_table(barriers)) == 8
    assert tables["barriers"]["title"] == "Barriers from π(A) to B"
    cells = accuracy_table(results).set_index([*CELL, "label"])
    for width, sparsity, rewind, *texts in tables["accuracy"]["rows"]:
        for arm, text in zip(stores.ARMS, texts, strict=True):
            cell = cells.loc[(float(width), float(sparsity), int(rewind), arm)]
            assert text.startswith(f"{cell['mean']:.1f} ± {cell['std']:.1f}")
    told = findings(results, barriers)
    assert ["\n".join(lines) for lines in data["findings"]] == [readable(sentence) for sentence in told]


def test_arms_look_as_in_the_report(data):
    looks = {arm["label"]: (arm["colour"], arm["symbol"], arm["glyph"]) for arm in data["arms"]}
    assert list(looks) == ["lth", "permuted", "naive"], "in the order of legends"
    assert looks["permuted"] == (ARMS["permuted"].colour, "square", "■")
    assert {arm.marker for arm in BUILT_IN.values()} <= MARKS.keys(), "every arm's marker has a counterpart"


def test_figures_that_the_browser_does_not_draw_are_pictures(store):
    found = figures_data(store / "runs" / STUDY)
    assert [figure["name"] for figure in found["figures"]] == ["barrier_vs_width"]
    assert "no plane has been measured" in json.dumps(found["missing"])
    assert figures_data(store / "runs" / LIVE) == {"figures": [], "missing": []}


def test_sweeps_are_listed_with_their_progress(store):
    found = {run["run"]: run for run in sweeps_of(store)}
    assert set(found) == {STUDY, LIVE, OLD, PARTS}, "all but one that has only begun"
    assert list(found)[-1] == OLD, "the last reported first"
    assert progress_of(store / "runs" / BEGUN) is None
    assert (found[LIVE]["state"], found[LIVE]["left"], found[LIVE]["used"]) == ("running", "3 min 20 s", "1.50 GPU-hours")
    assert (found[LIVE]["done"], found[LIVE]["total"]) == (2, 16)
    assert (found[STUDY]["state"], found[STUDY]["done"], found[STUDY]["left"]) == ("finished", 120, "")
    assert (found[OLD]["state"], found[OLD]["name"]) == ("finished", "old"), "an older version wrote no status"


def test_failures_have_their_reasons(store):
    (diverged,) = progress_of(store / "runs" / STUDY)["failures"]
    assert diverged == {"state": "diverged", "stage": "sparse(replicate=2)", "error": stores.REASON, "blocks": 3}
    running = progress_of(store / "runs" / PARTS)
    assert [one["error"] for one in running["failures"]] == ["RuntimeError: no"], "the status is newer than the manifest"
    assert running["num_failures"] == 1


def test_a_silent_driver_is_lost(tmp_path):
    store = locate(tmp_path)
    stores.write_json(store / "runs/a-1/status.json", stores.status_of("running", time=0.0))
    assert progress_of(store / "runs/a-1")["state"] == "lost"
    assert progress_of(store / "runs/a-1")["left"] == ""


@pytest.mark.parametrize("run", [LIVE, OLD, PARTS])
def test_runs_with_little_to_show_are_shown(store, run):
    found = json.loads(json.dumps(run_data(store / "runs" / run), allow_nan=False))
    if run == LIVE:
        assert found["notes"] == ["No network has finished yet: figures and tables appear here when one has."]
        assert (found["arms"], found["tables"], found["missing"]) == ([], [], [])
        assert curves_data(store / "runs" / run) == {}
        return
    assert found["notes"] == []
    assert [arm["label"] for arm in found["arms"]] == ["lth", "permuted", "naive"]
    assert len(found["accuracy"]["mean"]) == {OLD: 18, PARTS: 23}[run]
    assert found["curve_cells"]["id"] == []


def test_what_cannot_be_read_is_named(tmp_path):
    store = locate(tmp_path)
    stores.write_study(store)
    place = tmp_path / "curves" / f"{STUDY}.parquet"
    place.write_bytes(place.read_bytes()[:100])
    found = run_data(store / "runs" / STUDY)
    (note,) = found["notes"]
    assert "not a complete Parquet table" in note
    assert len(found["accuracy"]["mean"]) == 36, "the rest is shown"


def test_rows_that_cannot_be_averaged_are_a_note(tmp_path):
    store = locate(tmp_path)
    rows = stores.study_rows(STUDY)
    twice = [{**row, "key": f"{row['key']} again", "test_accuracy": 1.0} for row in rows if row["stage"] == "sparse"]
    stores.write_study(store)
    write_table(store, "results", STUDY, [*rows, *twice], stores.manifest_of(STUDY))
    found = run_data(store / "runs" / STUDY)
    assert len(found["notes"]) == 1
    assert "differ in a setting" in found["notes"][0]
    assert found["accuracy"] == {}
    assert len(found["lines"]["mean"]) == 40


def broken(*_, **__):
    raise AttributeError("'DataFrame' object has no\nattribute 'tolist'")


@pytest.mark.parametrize(
    "name", ["accuracy_points", "dense_points", "mean_effects", "contrast_cells", "line_points", "curve_points",
             "findings_of", "lost_networks", "looks_of"]
)  # fmt: skip
def test_a_part_that_cannot_be_made_is_a_note_whatever_the_exception(store, monkeypatch, name):
    from raylth.serve import data

    monkeypatch.setattr(data, name, broken)
    found = json.loads(json.dumps(run_data(store / "runs" / STUDY), allow_nan=False))
    assert found["notes"] == ["AttributeError: 'DataFrame' object has no attribute 'tolist'"]
    assert found["tables"], "the rest is shown"
    assert curves_data(store / "runs" / STUDY).keys() == ({} if name == "curve_points" else dict.fromkeys(curve_ids())).keys()


def curve_ids():
    return [cell_id(width, sparsity, rewind) for width in stores.WIDTHS for sparsity in stores.SPARSITIES
            for rewind in stores.REWINDS]  # fmt: skip


def test_a_table_or_figure_that_cannot_be_made_hides_no_other(store, monkeypatch):
    from raylth.report import contents
    from raylth.serve import data, figures

    harmed = [dataclasses.replace(entry, make=broken) if entry.name == "effects" else entry for entry in contents.TABLES]
    monkeypatch.setattr(data, "tables_of", lambda frames: harmed)
    found = run_data(store / "runs" / STUDY)
    assert [table["name"] for table in found["tables"]] == ["accuracy", "difference", "recovered", "barriers", "lines"]
    assert "AttributeError: 'DataFrame' object has no attribute 'tolist'" in [one["reason"] for one in found["missing"]]
    harmed = [dataclasses.replace(entry, make=broken) if entry.name == "planes" else entry for entry in contents.FIGURES]
    monkeypatch.setattr(figures, "figures_of", lambda frames: harmed)
    shown = figures_data(store / "runs" / STUDY)
    assert [figure["name"] for figure in shown["figures"]] == ["barrier_vs_width"]
    assert any(one["reason"].startswith("AttributeError: ") for one in shown["missing"])


def test_results_that_cannot_be_read_are_a_note_whatever_the_exception(tmp_path):
    store = locate(tmp_path)
    stores.write_study(store)
    (store / "runs" / STUDY / "search.json").write(b'{"studies": null, "holdout": 0.1}')
    (note,) = run_data(store / "runs" / STUDY)["notes"]
    assert note.startswith("The results cannot be read: TypeError: ")


@pytest.mark.parametrize("has_curves", [True, False])
def test_a_run_whose_stages_all_failed_has_no_note(tmp_path, has_curves):
    store = locate(tmp_path)
    rows = [{**row, "status": "failed", "error": "RuntimeError: no", "test_accuracy": None}
            for row in stores.study_rows(STUDY) if row["stage"] == "dense"]  # fmt: skip
    run = store / "runs" / STUDY
    for lost in (rows, []):
        write_table(store, "results", STUDY, lost, stores.manifest_of(STUDY))
        if has_curves:
            write_table(store, "curves", STUDY, [], stores.manifest_of(STUDY))
        stores.write_json(run / "manifest.json", stores.manifest_of(STUDY))
        found = json.loads(json.dumps(run_data(run), allow_nan=False))
        assert found["notes"] == []
        assert found["curve_cells"]["id"] == []
        assert curves_data(run) == {}
        assert (found["lost"] is not None) is bool(lost)
        assert figures_data(run)["figures"] == []


ODD = {
    "null-config": {"manifest.json": b'{"config": null}'},
    "null-status": {"status.json": b'{"state": "running", "time": null}'},
    "null-stages": {"status.json": b'{"state": "running", "time": 1.0, "stages": {"dense": null}}'},
    "half": {"manifest.json": b'{"config": {"na'},
    "endless": {"status.json": b'{"state": "running", "time": Infinity}'},
}


def test_one_odd_run_is_listed_and_hides_no_other(tmp_path):
    store = locate(tmp_path)
    stores.write_study(store)
    for name, files in ODD.items():
        for file, content in files.items():
            (store / "runs" / name / file).write(content)
    (tmp_path / "runs" / "folder" / "status.json").mkdir(parents=True)
    found = {run["run"]: run for run in json.loads(json.dumps(sweeps_of(store), allow_nan=False))}
    assert set(found) == {STUDY, "folder", *ODD}
    assert found[STUDY]["state"] == "finished"
    for name, files in ODD.items():
        assert found[name]["state"] == "cannot be read"
        assert found[name]["note"].startswith(f"{tmp_path}/runs/{name}/{next(iter(files))}: ")
    assert found["folder"]["note"] == f"[Errno 21] Is a directory: '{tmp_path}/runs/folder/status.json'"
    assert progress_of(store / "runs" / "half")["note"] == found["half"]["note"]


def test_a_store_that_does_not_answer_is_no_odd_run(tmp_path, monkeypatch):
    from raylth.serve import progress
    from raylth.store import StorageUnreachable

    def silent(run):
        raise StorageUnreachable("s3://bucket: no answer")

    stores.write_study(locate(tmp_path))
    monkeypatch.setattr(progress, "load_status", silent)
    with pytest.raises(StorageUnreachable):
        sweeps_of(locate(tmp_path))
