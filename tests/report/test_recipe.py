"""A run stands beside the paper only where it was trained by the paper's recipe."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylth.config.load import read_sweep
from raylth.config.sweep import SweepConfig
from raylth.core.ensemble import ensemble_metrics
from raylth.report import (
    beside_paper,
    ensembles_beside_paper,
    load_results,
    paper_ensembles,
    paper_recipe,
    recipe_of,
    write_report,
)
from raylth.store import locate
from raylth.store.tables import write_table
from tests.report.test_report import row

SWEEPS = Path(__file__).parents[2] / "sweeps"
TABLES = sorted(SWEEPS.glob("table*.yaml"))
TABLE_5 = SWEEPS / "table05_cifar10_resnet20.yaml"
STAGES = ("dense", "imp", "sparse")


def manifest_of(file, *changes):
    """The manifest of a sweep file's run; settings of the recipe that the file's version lacks are the paper's."""
    config = read_sweep(file, list(changes)).model_dump(mode="json")
    for entry, setting in settings_of(config["data"]["name"], config["model"]["name"]):
        section, name = setting.split(".")
        if name not in SweepConfig.model_fields[section].annotation.model_fields:
            config[section].setdefault(name, entry["paper"][0])
    return {"config": config}


def settings_of(data, model):
    for entry in paper_recipe()["settings"]:
        if data in entry["for"] and model in entry.get("models", [model]):
            for stage in STAGES if "{stage}" in entry["setting"] else ("",):
                yield entry, entry["setting"].format(stage=stage)


@pytest.mark.parametrize("file", TABLES, ids=lambda path: path.stem)
def test_the_files_of_the_papers_tables_have_its_recipe(file):
    recipe = recipe_of(manifest_of(file))
    assert recipe.is_the_papers, recipe.lines
    assert any("k is completed epochs" in line for line in recipe.lines), "what no setting changes is listed all the same"


def test_a_smaller_table_5_is_not_the_papers():
    """The example of a review: other rates, batches of 1,024, 5,000 images and rounds of one epoch."""
    changes = ["dense.lr=0.4", "sparse.lr=0.1", "data.num_train=5000", "imp.epochs_per_round=1"]
    changes += [f"{stage}.batch_size=1024" for stage in STAGES]
    recipe = recipe_of(manifest_of(TABLE_5, *changes))
    assert not recipe.is_the_papers
    assert recipe.lines[:5] == [
        "training images 5000, the paper 50000",
        "dense peak rate 0.4, the paper 0.08",
        "epochs of an IMP round 1, the paper 50",
        "sparse peak rate 0.1, the paper 0.02",
        "batch size 1024, the paper 128",
    ]
    (line,) = [line for line in recipe_of(manifest_of(TABLE_5, "sparse.batch_size=1024")).lines if "batch" in line]
    assert line == "sparse batch size 1024, the paper 128"


CASES = [
    pytest.param(file, entry, setting, id=f"{data}-{setting}")
    for file, data, model in (
        (TABLE_5, "cifar10", "resnet20"),
        (SWEEPS / "table09_cifar10_vgg11.yaml", "cifar10", "vgg11"),
        (SWEEPS / "imagenet.yaml", "imagenet", "resnet50"),
    )
    for entry, setting in settings_of(data, model)
]


@pytest.mark.parametrize(("file", "entry", "setting"), CASES)
def test_every_setting_of_the_recipe_is_compared(file, entry, setting):
    manifest = manifest_of(file)
    section, name = setting.split(".")
    manifest["config"][section][name] = entry["paper"][0]
    before = recipe_of(manifest)
    manifest["config"][section][name] = "another"
    after = recipe_of(manifest)
    (new,) = set(after.differences) - set(before.differences)
    assert f"{entry['name']} another, the paper " in new.text
    assert new.moves == entry.get("moves", True)
    del manifest["config"][section][name]
    gone = recipe_of(manifest)
    if "absent" in entry and entry["absent"] in entry["paper"]:
        assert gone == before
    else:
        assert set(gone.differences) - set(before.differences), "an older run, which does not say"


def test_what_does_not_move_accuracy_is_listed_and_does_not_hinder():
    recipe = recipe_of(manifest_of(TABLE_5, "data.layout=parquet", "sparse.precision=bf16"))
    assert recipe.is_the_papers
    assert "layout of the files parquet, the paper torchvision (the images were encoded anew)" in recipe.lines
    assert "sparse arithmetic bf16, the paper does not say" in recipe.lines


def test_a_run_without_a_ragged_batch_dropped_is_not_the_papers():
    manifest = manifest_of(TABLE_5)
    for stage in STAGES:
        manifest["config"][stage].pop("drop_last")
    recipe = recipe_of(manifest)
    assert not recipe.is_the_papers
    assert recipe.lines[0] == "ragged last batches dropped no, the paper yes"


@pytest.mark.parametrize("manifest", [None, {}, {"config": None}, {"config": {"data": {"name": "cifar10"}}}])
def test_a_run_of_which_nothing_is_known_is_not_the_papers(manifest):
    assert not recipe_of(manifest).is_the_papers
    assert (
        recipe_of({"config": {"data": {"name": "cifar10"}, "model": {"name": "resnet20"}}})
        .lines[0]
        .startswith("the run's manifest does not say data.num_train, data.num_test, data.holdout and ")
    )


def test_other_data_and_arms_of_a_search_are_not_the_papers():
    (line,) = recipe_of(manifest_of(SWEEPS / "quickstart.yaml")).lines
    assert line.startswith("mlp on mnist1d, which the paper has not")
    assert not recipe_of(manifest_of(TABLE_5), searched=True).is_the_papers


@pytest.mark.parametrize("data", ["cifar10", "imagenet"])
def test_every_setting_that_makes_a_network_is_in_the_recipe_or_listed_as_absent(data):
    """A new setting must be classed in raylth/report/data/paper_recipe.yaml."""
    recipe = paper_recipe()
    model = {"cifar10": "resnet20", "imagenet": "resnet50"}[data]
    classed = {setting for _, setting in settings_of(data, model)} | set(recipe["neutral"]) | set(recipe["open"][data])
    there = {
        f"{section}.{name}"
        for section in ("data", "model", "dense", "mask", "imp", "match", "sparse")
        for name in SweepConfig.model_fields[section].annotation.model_fields
    }
    assert not there - classed


IDENTITY = {"dataset": "cifar10", "model": "resnet20", "sweep": "r"}


def run_of(tmp_path, manifest):
    """A finished run of one cell of Table 5, and an ensemble of Table 1, in a store."""
    store = locate(tmp_path)
    manifest = {
        "run": "r-1", "written": "2026-11-21T00:00:00", "python": "3.11", "git_commit": None, "packages": {"torch": "2"},
        "hardware": {"system": "Linux", "cpus": 2}, "stages": {"sparse": {"done": 9}}, **manifest,
    }  # fmt: skip
    arms = [
        row(**IDENTITY, arm=arm, replicate=r, sparsity=0.9, rewind_epoch=10, test_accuracy=accuracy + r,
            match_epoch=200 if arm == "permuted" else None)
        for arm, accuracy in (("lth", 91.0), ("permuted", 89.5), ("naive", 88.7)) for r in range(3)
    ]  # fmt: skip
    dense = [row(**IDENTITY, stage="dense", arm=None, network="A", replicate=0, epochs=200, test_accuracy=92.0)]
    write_table(store, "results", "r-1", [*arms, *dense], manifest)
    write_table(store, "ensembles", "r-1", [ensemble("imp")], manifest)
    folder = store / "runs/r-1"
    (folder / "manifest.json").write(json.dumps(manifest).encode())
    return folder


def ensemble(arm, number=0, **values):
    measured = {
        "mean_accuracy": 90.0 + number, "ensemble_accuracy": 92.0 + number, "disagreement": 0.1, "kl": 0.3, "js": 0.06,
        "mean_nll": 0.4, "ensemble_nll": 0.3, "mean_calibration_error": 0.05, "ensemble_calibration_error": 0.02,
    }  # fmt: skip
    return {**IDENTITY, "key": f"{arm}{number}", "run": "r-1", "width": 1.0, "sparsity": 0.9, "rewind_epoch": 10,
            "arm": arm, "members": 5, **measured, **values}  # fmt: skip


def test_the_page_sets_beside_the_paper_what_has_its_recipe(tmp_path):
    run = run_of(tmp_path, manifest_of(TABLE_5, "data.layout=parquet"))
    page = write_report(run, run / "report").read().decode()
    assert "<h2>Beside the paper</h2>" in page
    assert "<h2>Ensembles beside the paper</h2>" in page
    assert page.index("<li>layout of the files parquet") < page.index("<summary>Beside the paper</summary>")
    assert pd.read_csv(run.path / "report/tables/paper.csv")["difference"].notna().all()


def test_the_page_says_instead_what_differs(tmp_path):
    """Also where an earlier report had the table: its files are removed."""
    run = run_of(tmp_path, manifest_of(TABLE_5))
    write_report(run, run / "report")
    assert (run / "report/tables/paper.csv").exists()
    run = run_of(tmp_path, manifest_of(TABLE_5, "sparse.lr=0.1"))
    page = write_report(run, run / "report").read().decode()
    assert "<h2>Not set beside the paper</h2>" in page
    assert "<li>sparse peak rate 0.1, the paper 0.02</li>" in page
    assert "eside the paper</h2>" not in page.replace("Not set beside the paper", "")
    assert not [name for name in (run / "report/tables").names() if "paper" in name]


def test_tables_without_a_manifest_or_by_another_recipe_are_empty(tmp_path):
    run = run_of(tmp_path, manifest_of(TABLE_5))
    results, ensembles = load_results(run), pd.DataFrame([ensemble("imp")])
    manifest, other = manifest_of(TABLE_5), manifest_of(TABLE_5, "dense.weight_decay=0.001")
    assert len(beside_paper(results, manifest)) == 3
    assert len(ensembles_beside_paper(ensembles, results, manifest)) == 5
    for table in (beside_paper(results), beside_paper(results, other), beside_paper(results, manifest, searched=True)):
        assert table.empty
        assert "difference" in table
    for unlike in (None, other):
        assert ensembles_beside_paper(ensembles, results, unlike).empty


def test_js_of_another_scale_has_no_difference(tmp_path):
    run = run_of(tmp_path, manifest_of(TABLE_5))
    sets = pd.DataFrame([ensemble("imp", 0), ensemble("imp", 1), ensemble("imp", 2)])
    beside = ensembles_beside_paper(sets, load_results(run), manifest_of(TABLE_5)).set_index("measure")
    assert beside.loc["js", ["ours", "paper"]].tolist() == [pytest.approx(0.06), 0.13]
    assert pd.isna(beside.loc["js", "difference"])
    assert beside["difference"].notna().sum() == 4
    together = beside.loc["ensemble_accuracy"]
    assert together[["ours", "sets"]].tolist() == [93.0, 3]
    assert (together["low"], together["high"]) == pytest.approx((93 - 2.484, 93 + 2.484), abs=1e-3)
    page = write_report(run, run / "report").read().decode()
    assert "JS is on another scale" in page


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 10), st.floats(0.01, 10.0))
def test_why_the_papers_js_is_of_another_scale(seed, classes, sharpness):
    """KL, averaged over both directions, is at least 4 times JS, half the sum of two; the paper's is not."""
    logits = sharpness * torch.randn(3, 20, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = ensemble_metrics(torch.softmax(logits, 2), torch.zeros(20, dtype=torch.long))
    assert found.kl >= 4 * found.js * (1 - 1e-6)
    paper = paper_ensembles().dropna(subset=["js"])
    assert (paper["kl"] / paper["js"]).round(1).between(2.7, 3.5).all()
