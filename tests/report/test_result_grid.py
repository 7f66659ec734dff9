"""A run in Tune's own form: what its `ResultGrid` gives is what the tables have."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ray.tune import ResultGrid

from raylth.driver.run_record import Run
from raylth.report import load_curves, load_results
from raylth.results import result_grid
from raylth.stages import make_plan, result_rows, run_plan
from raylth.store import Store
from tests.conftest import tiny_sweep


def test_one_result_for_each_trained_network(quickstart):
    grid, rows = result_grid(quickstart), load_results(quickstart)
    assert isinstance(grid, ResultGrid)
    trained = rows[rows["epochs"].fillna(0) > 0].set_index("key")
    assert len(grid) == len(trained) == grid.num_terminated
    assert grid.num_errors == 0
    for result in grid:
        row = trained.loc[result.metrics["trial_id"]]
        assert result.metrics["test_accuracy"] == row["test_accuracy"]
        assert result.config["stage"] == row["stage"]
        assert result.config.get("arm") == (row["arm"] if pd.notna(row["arm"]) else None)
        assert "rewind_epoch" not in result.config or result.config["rewind_epoch"] == row["rewind_epoch"]


def test_the_best_result_and_its_checkpoint(quickstart):
    grid, rows = result_grid(quickstart), load_results(quickstart)
    best = grid.get_best_result("test_accuracy", "max")
    assert best.metrics["test_accuracy"] == rows["test_accuracy"].max()
    worst = grid.get_best_result(metric="test_loss", mode="max")
    assert worst.metrics["test_loss"] == rows["test_loss"].max()
    key = best.metrics["trial_id"]
    store = Store(quickstart.parent.parent)
    manifest = Path(best.checkpoint.path) / "MANIFEST.json"
    assert manifest.parent.name == key
    assert set(json.loads(manifest.read_text())["files"]) == set(store.files(key))


def test_epochs_and_dataframe_are_those_of_the_curves(quickstart):
    grid, curves = result_grid(quickstart), load_curves(quickstart)
    frame = grid.get_dataframe().set_index("trial_id")
    for result in list(grid)[:10]:
        key = result.metrics["trial_id"]
        curve = curves[curves["key"] == key].sort_values("epoch")
        np.testing.assert_array_equal(result.metrics_dataframe["train_loss"], curve["train_loss"])
        np.testing.assert_array_equal(result.metrics_dataframe["training_iteration"], curve["epoch"])
        assert frame.loc[key, "test_accuracy"] == curve["test_accuracy"].iloc[-1]
    arms = load_results(quickstart).set_index("key")["arm"].dropna()
    assert (frame["config/arm"].dropna() == arms.reindex(frame["config/arm"].dropna().index)).all()


def test_what_diverged_is_an_error(tmp_path):
    config = tiny_sweep(storage=str(tmp_path), dense={"lr": 900.0}, sparse={"arms": ["naive"], "sparsities": [0.5]})
    plan, store = make_plan(config), Store(config.storage)
    graph = run_plan(plan, store)
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    grid = result_grid(run.folder)
    assert grid.num_errors == len(grid.errors) > 0
    assert all("diverged: training diverged in epoch" in str(error) for error in grid.errors)
    (first, *_) = [result for result in grid if result.error]
    assert first.checkpoint is None


def test_where_there_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest"):
        result_grid(tmp_path)
