"""Trackio's runs are read back with its own API: every network of a sweep, whole and once."""

import json
import os
import subprocess
import sys

import pytest

from raylth.config.tracking import LogConfig
from raylth.trackers import open_trackers

# Beside the environment: Trackio brings a web framework, which nothing here needs of it.
PACKAGES = ["trackio==0.43.0", "gradio-client==2.7.2", "orjson>=3.11", "websockets>=15"]
SCRIPT = """
import json, sys
from pathlib import Path
from raylth.config.tracking import LogConfig
from raylth.driver.run_record import Recorder, Run
from raylth.stages import make_plan, run_plan
from raylth.store import Store
from raylth.trackers import open_trackers
from tests.conftest import tiny_sweep

log = {"custom": {"trackio": {"folder": "board"}}, "evaluate_every": 2}
config = tiny_sweep(sparse={"arms": ["lth", "naive"], "sparsities": [0.5]}, log=log)
plan, store = make_plan(config), Store("store")
graph = run_plan(plan, store)
run = Run.open(config, store)
for _ in range(2):  # the second time nothing is new
    recorder = Recorder(run, plan, graph)
    recorder.close()
    assert not recorder.take_notes()

import trackio
found = [
    {"name": each.name, "config": each.config, "logs": trackio.SQLiteStorage.get_logs("tiny", each.name, run_id=each.id)}
    for each in trackio.Api().runs("tiny")
]
stages = [
    {"key": stage.key, "name": stage.name, "kind": stage.kind, "metrics": store.metrics(stage.key), "labels": stage.labels}
    for stage in plan.stages if stage.epochs
]
try:
    open_trackers(LogConfig(custom={"trackio": {"folder": "elsewhere"}}), "tiny", run.name)
except ValueError as error:
    refused = str(error)
json.dump({"run": run.name, "found": found, "stages": stages, "refused": refused}, open("read.json", "w"))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A sweep that was logged to Trackio twice, in a process that has it; what its API reads there."""
    folder = tmp_path_factory.mktemp("trackio")
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
    subprocess.run([*install, "--target", str(folder / "packages"), *PACKAGES], check=True, timeout=200)
    path = os.pathsep.join([str(folder / "packages"), os.getcwd()])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "the terminal is the sweep's"
    assert (folder / "board" / "tiny.db").exists()
    return json.loads((folder / "read.json").read_text())


def test_every_network_has_one_run_with_its_labels_curve_and_numbers(written):
    runs = {run["config"]["raylth.key"]: run for run in written["found"]}
    assert len(runs) == len(written["found"]) == len(written["stages"])
    for stage in written["stages"]:
        run, metrics = runs[stage["key"]], stage["metrics"]
        config = run["config"]
        assert (config["raylth.run"], config["raylth.stage"], config["_Group"]) == (
            written["run"],
            stage["kind"],
            stage["kind"],
        )
        assert f"({run['name'].removesuffix(' ' + stage['key'][:8])})" in stage["name"]
        assert (config["model"], config["dataset"], config["optimizer"], config["status"]) == (
            "mlp",
            "mnist1d",
            "sgd",
            "done",
        )
        assert config.get("arm") == stage["labels"].get("arm")
        for name in ("train_loss", "test_loss", "test_accuracy"):
            points = [(log["step"], log[name]) for log in run["logs"] if name in log]
            assert points == [(point["epoch"], point[name]) for point in metrics["curve"] if name in point]
        (seconds,) = ((log["step"], log["seconds"]) for log in run["logs"] if "seconds" in log)
        assert seconds == (metrics["epochs"], metrics["seconds"])


def test_another_folder_in_one_process_is_refused(written):
    assert written["refused"].startswith("log.custom.trackio: cannot be opened: ValueError: folder: trackio writes into /")


def test_where_it_is_not_installed_one_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"trackio is not installed: pip install 'raylth\[trackio\]'") as caught:
        open_trackers(LogConfig(custom={"trackio": {"folder": str(tmp_path)}}), "tiny", "tiny-0")
    assert "\n" not in str(caught.value)
