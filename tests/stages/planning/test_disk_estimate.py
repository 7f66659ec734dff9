"""The forecast against what a sweep really writes."""

import shutil
from types import SimpleNamespace

import pytest
import yaml

from raylth.cli.sweep import main
from raylth.core.data import load_dataset
from raylth.driver.run_record import Recorder
from raylth.stages import forecast, in_units, make_plan, run_plan, scan
from raylth.store import Store
from tests.conftest import tiny_sweep


def test_what_was_forecast_is_what_was_written(tmp_path):
    config = tiny_sweep(
        data={"name": "digits", "num_train": 60, "num_test": 30},
        model={"name": "resnet20", "widths": [0.25]},
        dense={"epochs": 2},
        match={"epochs": [2]},
        sparse={"arms": ["lth", "permuted"], "sparsities": [0.5], "rewinds": [0, 1]},
    )
    plan, store = make_plan(config), Store(tmp_path)
    ahead = forecast(plan, scan(plan, store), 2)
    graph = run_plan(plan, store)
    written: dict[str, int] = {}
    for stage in plan.stages:
        sizes = (sum(store.held()[key].values()) for key in stage.produces)
        written[stage.kind] = written.get(stage.kind, 0) + sum(sizes)
    for kind, size in written.items():
        assert ahead.published[kind] == pytest.approx(size, rel=0.1 if size > 20_000 else 0.5), kind
    again = forecast(plan, graph, 2)
    assert (again.storage, again.states) == (0, 0), "nothing is left to write"
    data = load_dataset("digits", num_train=60, num_test=30)
    held = sum(array.nbytes for array in (data.train_x, data.train_y, data.test_x, data.test_y))
    assert ahead.dataset == held


def test_a_disk_that_is_too_small_is_refused_with_what_is_missing(tmp_path, monkeypatch, capsys):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(tiny_sweep().model_dump(mode="json", exclude_defaults=True)))
    store = tmp_path / "store"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    for options in ([], ["--dry-run"]):
        assert main([str(tmp_path / "s.yaml"), f"storage={store}", *options]) == 2
        error = capsys.readouterr().err
        assert "100 kB are free" in error
        assert "bytes) are missing" in error
        assert error.startswith("command line: storage: ")
    assert not store.exists()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (28_400_000, "28.4 MB"), (3 * 10**15, "3000 TB")]
)
def test_bytes_for_people(count, text):
    assert in_units(count) == text


def test_what_failed_or_is_blocked_is_not_written_and_a_finished_sweep_needs_no_space(tmp_path, monkeypatch, capsys):
    digits = {"name": "digits", "num_train": 60, "num_test": 30}
    config = tiny_sweep(data=digits, model={"name": "resnet20", "widths": [0.25]},
                        dense={"epochs": 1}, match={"epochs": [1]}, imp={"epochs_per_round": 1},
                        sparse={"arms": ["naive"], "sparsities": [0.5], "rewinds": [0]})  # fmt: skip
    plan, store = make_plan(config), Store(tmp_path / "store")
    graph = scan(plan, store)
    while (stage := graph.next_ready()) is not None:
        graph.fail(stage.key, "no")
    assert forecast(plan, graph, 2).storage == 0
    run_plan(plan, store)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
        assert main([str(tmp_path / "s.yaml"), f"storage={store.root}"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(Recorder, "close", full)
    assert main([str(tmp_path / "s.yaml"), f"storage={store.root}"]) == 1
    shown = capsys.readouterr().out
    assert "the results could not be written: No space left on device; the same command writes them" in " ".join(
        shown.split()
    )


def full(recorder):
    raise OSError(28, "No space left on device")
