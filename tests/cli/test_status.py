"""The status of sweeps, and rows that are written while a sweep runs."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylth.cli.status import main
from raylth.driver.progress import StatusFile
from raylth.driver.run_record import Recorder, Run
from raylth.report import load_curves, load_results
from raylth.stages import Graph, make_plan, result_rows, run_plan
from raylth.store import Store, locate
from raylth.store.tables import append_rows, compact_table
from tests.conftest import tiny_sweep


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = tiny_sweep(sparse={"arms": ["lth", "naive"], "sparsities": [0.5]}, match={"epochs": None})
    plan, store = make_plan(config), Store(tmp_path_factory.mktemp("store"))
    graph = run_plan(plan, store)
    assert not graph.errors
    return plan, store, graph


def test_rows_are_there_while_the_sweep_runs_and_joined_in_its_order_at_the_end(finished):
    plan, store, done = finished
    run = Run.open(plan.config, store)
    graph = Graph(plan.stages)
    recorder = Recorder(run, plan, graph, batch=3, seconds=1e9)
    ended = list(reversed(plan.stages))  # whatever order they end in
    for number, stage in enumerate(ended, start=1):
        graph.finish(stage.key)
        if stage.key == ended[3].key:
            graph.retry(stage.key)  # lost, and made again
            graph.finish(stage.key)
        recorder.update()
        if number == 7:
            half = load_results(run.folder)
            written = graph.ended[: recorder.num_written]
            assert len(written) >= 6, "two batches"
            assert set(half["key"]) == {key for key in written if graph.stages[key].kind != "match"}
            assert half["key"].is_unique
    recorder.close()
    files = sorted(path.name for path in (store.root.path / "results").iterdir())
    assert files == [f"{run.name}.parquet"], "no part is left"
    frame = load_results(run.folder)
    expected = result_rows(plan, done, store, run.name)
    assert frame["key"].tolist() == [row["key"] for row in expected["results"]]
    assert len(load_curves(run.folder)) == len(expected["curves"])
    assert load_curves(run.folder)["epoch"].tolist() == [row["epoch"] for row in expected["curves"]]


def test_status_shows_every_sweep_and_says_when_one_is_lost(finished, tmp_path, capsys, monkeypatch):
    plan, _, _ = finished
    assert main([str(tmp_path)]) == 2
    assert "no sweep has run here" in capsys.readouterr().err
    graph = Graph(plan.stages)
    first = graph.next_ready()
    graph.fail(first.key, "RuntimeError: no")
    graph.incidents["preempted"] = 2
    file = StatusFile(locate(tmp_path) / "runs/a-1")
    file.update(graph, 5)
    everything = Graph(plan.stages, [key for stage in plan.stages for key in stage.produces])
    StatusFile(locate(tmp_path) / "runs/b-2").update(everything, 9, state="finished")
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "a-1: running, reported 0 s ago" in shown
    assert "b-2: finished" in shown
    assert "RuntimeError: no; blocks " in shown
    assert "2 preempted" in shown
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert main([str(tmp_path), "--json"]) == 0
    told = {entry["run"]: entry for entry in map(json.loads, capsys.readouterr().out.splitlines())}
    assert told["a-1"]["state"] == "lost"
    assert told["b-2"]["state"] == "finished"
    assert sum(counts.get("done", 0) for counts in told["b-2"]["stages"].values()) == len(plan.stages)


def test_two_drivers_of_one_run_lose_no_rows(tmp_path):
    """Both write parts; the first joins all and removes them; the second joins its last ones."""
    run, row = "r-1", {"run": "r-1", "stage": "sparse", "status": "done"}
    root = locate(tmp_path)
    order = {key: rank for rank, key in enumerate("abcd")}
    append_rows(root, "results", run, [{**row, "key": "b"}], {})
    append_rows(root, "results", run, [{**row, "key": "a", "status": "failed"}], {})
    compact_table(root, "results", run, order, {})
    append_rows(root, "results", run, [{**row, "key": "a"}, {**row, "key": "d"}], {})
    compact_table(root, "results", run, order, {})
    frame = load_results(tmp_path)
    assert frame["key"].tolist() == ["a", "b", "d"]
    assert set(frame["status"]) == {"done"}, "the later row of a stage counts"


HARMED = {
    "a-1": (b'{"sta', "not whole JSON"),
    "b-2": (b"[]", "should be an object"),
    "d-4": (b'{"state": "finished", "time": null}', "time should be a number, found null"),
    "e-5": (b'{"state": "running", "time": 1.0, "stages": null}', "stages should be "),
    "f-6": (b'{"state": "running", "time": 1.0, "process": {}}', "process should be "),
    "g-7": (b'{"state": "finished"}', "has no time"),
}


def test_a_harmed_status_hides_no_other(tmp_path, capsys):
    for name, (content, _) in HARMED.items():
        (locate(tmp_path) / "runs" / name / "status.json").write(content)
    (tmp_path / "runs" / "h-8" / "status.json").mkdir(parents=True)
    for alone in (True, False):
        if not alone:
            StatusFile(locate(tmp_path) / "runs" / "c-3").update(Graph([]), 0)
        for words in ((), ("--json",)):
            assert main([str(tmp_path), *words]) == (2 if alone else 0)
            told = capsys.readouterr()
            assert ("c-3" in told.out) is not alone
            lines = told.err.splitlines()
            for name, (_, text) in HARMED.items():
                (line,) = [line for line in lines if line.startswith(f"{name}: ")]
                assert line.startswith(f"{name}: cannot be read: {tmp_path}/runs/{name}/status.json: {text}")
            assert lines[-1] == f"h-8: cannot be read: [Errno 21] Is a directory: '{tmp_path}/runs/h-8/status.json'"
            assert len(lines) == len(HARMED) + 1
    assert main([str(tmp_path / "runs" / "a-1")]) == 2
    assert capsys.readouterr().err.startswith(f"a-1: cannot be read: {tmp_path}/runs/a-1/status.json: not whole JSON")


def test_an_older_status_with_few_fields_is_shown(tmp_path, capsys):
    (locate(tmp_path) / "runs/a-1/status.json").write(
        b'{"state": "finished", "time": 1.0, "errors": [{"error": "no"}], "num_errors": 2}'
    )
    assert main([str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "a-1: finished, reported " in told.out
    assert "and 1 more" in told.out


def test_one_run_is_shown_alone(finished, tmp_path, capsys):
    graph = Graph(finished[0].stages)
    for name in ("a-1", "b-2"):
        StatusFile(locate(tmp_path) / f"runs/{name}").update(graph, 0, state="finished")
    assert main([str(tmp_path / "runs" / "a-1")]) == 0
    shown = capsys.readouterr().out
    assert "a-1: finished" in shown
    assert "b-2" not in shown
    assert main([f"{tmp_path}/runs/a-1/", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "a-1"
    assert main([str(tmp_path / "runs" / "c-3")]) == 2


def test_a_running_sweep_is_watched_until_it_ends(finished, tmp_path, capsys, monkeypatch):
    graph, waits = Graph(finished[0].stages), []
    old, new, later = (StatusFile(locate(tmp_path) / f"runs/{name}") for name in ("a-1", "b-2", "c-3"))
    old.update(graph, 0, state="finished")
    new.update(graph, 0)

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            later.update(graph, 0)
            new.update(graph, 0, state="finished")
        if len(waits) == 3:
            later.update(graph, 0, state="finished")

    monkeypatch.setattr("raylth.cli.status.time.sleep", wait)
    assert main([str(tmp_path), "--watch"]) == 0
    shown = capsys.readouterr().out
    assert len(waits) == 3
    assert "b-2: finished" in shown
    assert "c-3: finished" in shown, "which started meanwhile"
    assert "a-1" not in shown, "it had ended before"
    assert main([str(tmp_path), "--watch"]) == 0, "nothing runs: the newest is shown once"
    assert "c-3: finished" in capsys.readouterr().out
    assert len(waits) == 3


def test_ctrl_c_ends_the_watching_alone(finished, tmp_path):
    StatusFile(locate(tmp_path) / "runs/a-1").update(Graph(finished[0].stages), 0)
    command = [str(Path(sys.executable).with_name("raylth")), "status", str(tmp_path), "--watch"]
    screen, end = pty.openpty()  # a terminal, whose cursor must be there again
    with subprocess.Popen(command, stdout=end, stderr=end, env={**os.environ, "TERM": "xterm"}) as watching:
        os.close(end)
        shown = b""
        while b"a-1: running" not in shown:
            shown += os.read(screen, 4096)
        watching.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # of a terminal that nobody writes to any more
            while part := os.read(screen, 4096):
                shown += part
        assert watching.wait(30) == 0
    os.close(screen)
    assert b"Traceback" not in shown
    assert shown.rindex(b"\x1b[?25h") > shown.index(b"\x1b[?25l"), "the cursor is shown again"
    assert shown.count(b"a-1: running") >= 2, "and what was known last"
