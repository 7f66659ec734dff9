"""Exporters in threads: failures are retried; one that keeps failing is switched off, reported once, and ends nothing."""

import importlib.util
import sys
import threading
import time
from pathlib import Path

import pytest

from raylth.config.tracking import TRACKERS, LogConfig, Tracker
from raylth.config.types import Settings
from raylth.driver.run_record import Recorder, Run
from raylth.report import load_results
from raylth.trackers import Background, Network, check_exporters

NETWORKS = [Network(letter, "sparse", letter, {}, [], {}) for letter in "abc"]


class Flaky:
    """Fails so many times; then it writes."""

    def __init__(self, failures):
        self.failures, self.tries, self.written = failures, 0, []

    def write(self, network):
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no\nluck")
        self.written.append(network.key)


def test_what_fails_twice_is_written_by_the_third_try():
    background = Background(Flaky(2), "log.flaky", pause=0.01)
    background.add(NETWORKS)
    background.close()
    assert background.exporter.written == ["a", "b", "c"]
    assert background.exporter.tries == 5
    assert background.take_notes() == []


def test_three_failures_in_a_row_switch_an_exporter_off_and_are_reported_once():
    background = Background(Flaky(4), "log.flaky", pause=0.01)
    background.add(NETWORKS)
    background.close()
    background.add(NETWORKS)
    background.close()
    assert (background.exporter.tries, background.exporter.written) == (3, [])
    (note,) = background.take_notes()
    assert note.startswith("log.flaky: switched off after 3 failures in a row: RuntimeError: no luck; ")
    assert background.take_notes() == []


def test_neither_a_sweep_nor_its_end_waits_for_an_exporter_that_hangs():
    release = threading.Event()

    class Hanging:
        def write(self, network):
            release.wait(60)

    start = time.monotonic()
    for patience, seconds in ((0.2, float("inf")), (60, 0.2)):
        background = Background(Hanging(), "log.hanging", patience=patience)
        background.add(NETWORKS)
        background.close(seconds)
        assert len(background.take_notes()) == 1
    assert time.monotonic() - start < 10
    release.set()


def test_one_that_gets_on_slowly_is_waited_for():
    class Slow(Flaky):
        def write(self, network):
            time.sleep(0.3)
            super().write(network)

    background = Background(Slow(0), "log.slow", patience=0.6)
    background.add(NETWORKS)
    background.close()
    assert background.exporter.written == ["a", "b", "c"], "0.9 s, but never 0.6 s without a word"
    assert not background.take_notes()


def test_a_dead_server_and_a_folder_that_cannot_be_stop_no_sweep(finished, tmp_path, capfd):
    plan, store, graph = finished
    (tmp_path / "file").write_text("")
    log = {
        "tensorboard": str(tmp_path / "file/board"),
        "wandb": {"folder": str(tmp_path / "file/wandb")},
        "mlflow": "http://127.0.0.1:9",
    }
    run = Run.open(plan.config.model_copy(update={"log": LogConfig.model_validate(log)}), store)
    recorder = Recorder(run, plan, graph)
    assert [export.setting for export in recorder.exports] == ["log.tensorboard", "log.wandb", "log.mlflow"]
    for export in recorder.exports:
        export.pause = 0.01
    recorder.close()
    notes = recorder.take_notes()
    assert [note.split(":")[0] for note in notes] == ["log.tensorboard", "log.wandb", "log.mlflow"]
    assert all("\n" not in note and "3 failures" in note for note in notes)
    assert "NotADirectoryError" in notes[1]
    assert "127.0.0.1" in notes[2]
    assert recorder.take_notes() == []
    assert len(load_results(run.folder)) == sum(stage.kind not in ("match",) for stage in plan.stages)
    assert capfd.readouterr() == ("", ""), "the terminal is the sweep's"


def test_a_tracker_of_ones_own_needs_no_name_and_its_notes_begin_with_its_setting(finished, monkeypatch):
    class Closed:
        __slots__ = ()  # which takes no attribute of anyone else's

        def write(self, network):
            raise RuntimeError("no luck")

    monkeypatch.setitem(TRACKERS._entries, "own:closed", Tracker(open=lambda *given: Closed(), settings=Settings))
    plan, store, graph = finished
    log = LogConfig.model_validate({"custom": {"own:closed": {}}})
    recorder = Recorder(Run.open(plan.config.model_copy(update={"log": log}), store), plan, graph)
    for export in recorder.exports:
        export.pause = 0.01
    recorder.close()
    (note,) = recorder.take_notes()
    assert note.startswith("log.custom.own:closed: switched off after 3 failures in a row: RuntimeError: no luck; ")


@pytest.mark.parametrize(
    ("log", "installed", "missing"),
    [
        ({"wandb": {}}, [], "wandb"),
        ({"mlflow": "http://host"}, [], "mlflow"),
        ({"mlflow": "sqlite:///runs.db"}, ["mlflow", "sqlalchemy"], "alembic"),
    ],
)
def test_a_missing_package_is_reported_before_anything_starts(log, installed, missing, tmp_path, monkeypatch):
    config, (setting,) = LogConfig.model_validate(log), log
    check_exporters(config)
    (tmp_path / missing).mkdir()  # W&B's own folder of files, say, is not the package
    for name in installed:
        (tmp_path / name).symlink_to(Path(importlib.util.find_spec(name).origin).parent)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("wandb", "mlflow", "sqlalchemy", "alembic"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ValueError, match=r"^log\.") as raised:
        check_exporters(config)
    assert str(raised.value) == f"log.{setting}: the package {missing} is not installed: pip install 'raylth[{setting}]'"
