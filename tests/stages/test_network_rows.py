"""How a network was trained, in its row of the results."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylth.driver.run_record import Run
from raylth.report import accuracy_table, load_results
from raylth.report.sql import ask
from raylth.stages import make_plan, result_rows, run_plan
from raylth.store import Store, locate
from tests.conftest import tiny_sweep

RECIPES = {
    "dense": {"lr": 0.05, "batch_size": 64, "epochs": 2},
    "imp": {"lr": 0.02, "batch_size": 128, "epochs_per_round": 1},
    "sparse": {
        "lr": 0.001, "batch_size": 32, "optimizer": {"name": "adamw"}, "arms": ["lth", "naive"], "sparsities": [0.3, 0.5],
        "rewinds": [1],
    },
}  # fmt: skip
COLUMNS = ["lr", "batch_size", "optimizer"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny_sweep(match={"epochs": [2]}, **RECIPES)
    plan, store = make_plan(config), Store(tmp_path_factory.mktemp("store"))
    graph = run_plan(plan, store)
    assert not graph.errors
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    return run


def test_a_row_says_how_its_network_was_trained(run):
    rows = load_results(run.folder)
    expected = {"dense": (0.05, 64, "sgd", 2), "imp": (0.02, 128, "sgd", 1), "sparse": (0.001, 32, "adamw", 1)}
    for kind, recipe in expected.items():
        found = rows.loc[rows["stage"] == kind, [*COLUMNS, "epochs"]].drop_duplicates()
        assert [tuple(row) for row in found.to_numpy().tolist()] == [recipe], kind


def test_an_arm_that_continues_the_dense_schedule_has_its_rate(tmp_path):
    config = tiny_sweep(match={"epochs": [2]}, **{**RECIPES, "sparse": {**RECIPES["sparse"], "schedule": "rewound"}})
    plan, store = make_plan(config), Store(tmp_path)
    rows = result_rows(plan, run_plan(plan, store), store, "run")["results"]
    assert {(row["lr"], row["batch_size"], row["optimizer"]) for row in rows if row["stage"] == "sparse"} == {
        (0.05, 64, "sgd")
    }


def test_a_mask_that_was_not_trained_has_none(tmp_path):
    plan, store = make_plan(tiny_sweep(mask={"finder": "oneshot"}, match={"epochs": [2]}, **RECIPES)), Store(tmp_path)
    rows = result_rows(plan, run_plan(plan, store), store, "run")["results"]
    found = [row for row in rows if row["stage"] == "find"]
    assert found
    assert all(row[name] is None for row in found for name in COLUMNS)


def test_an_older_table_is_read_alone_and_beside_a_newer_one(run, tmp_path):
    new = pq.read_table(run.results.path)
    old = new.drop_columns(COLUMNS)
    for name, text in (("run", "old-00000000"), ("sweep", "old")):
        old = old.set_column(old.column_names.index(name), name, pa.array([text] * len(old), pa.string()))
    folder = tmp_path / "results"
    folder.mkdir()
    pq.write_table(old, folder / "old-00000000.parquet")
    assert len(accuracy_table(load_results(tmp_path))) == 4
    assert ask(locate(tmp_path), "SELECT count(*), count(lr) FROM results")[1] == [(len(old), 0)]
    pq.write_table(new, folder / f"{run.name}.parquet")
    both = load_results(tmp_path)
    assert both.groupby("run")["lr"].count().to_dict() == {"old-00000000": 0, run.name: len(new)}
