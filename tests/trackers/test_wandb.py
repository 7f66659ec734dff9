"""W&B's files are read back with W&B's own messages: name, group, labels, curve and numbers of each network, once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from raylth.config.tracking import LogConfig, WandbConfig
from raylth.driver.run_record import Recorder, Run
from raylth.trackers.wandb import Wandb
from tests.trackers.wandb_server import WandbServer

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 32768


def records(path):
    """The messages of a .wandb file: a header of 7 bytes, then LevelDB's log format (blocks of pieces of messages)."""
    data, place, piece, found = path.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while place < len(data):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        piece += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole message, or its last piece
            found.append(Record.FromString(piece))
            piece = b""
    return found


def items(changes):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in changes}


def read(path):
    """What a run's file says: its record, config, history and summary."""
    messages = records(path)
    (run,) = [message.run for message in messages if message.HasField("run")]
    history = [items(message.history.item) for message in messages if message.HasField("history")]
    summary = {}
    for message in messages:
        if message.HasField("summary"):
            summary |= items(message.summary.update)
    assert [message.exit.exit_code for message in messages if message.HasField("exit")] == [0]
    return run, items(run.config.update), history, summary


def files(folder):
    return {path.parent.name.rpartition("run-")[2].partition("-")[2]: path for path in Path(folder).rglob("*.wandb")}


def test_every_network_has_a_run_with_its_labels_curve_and_numbers(finished, tmp_path, capfd):
    plan, store, graph = finished
    config = plan.config.model_copy(update={"log": LogConfig.model_validate({"wandb": {"folder": str(tmp_path)}})})
    run = Run.open(config, store)
    for _ in range(2):  # the second time nothing is new
        recorder = Recorder(run, plan, graph)
        recorder.close()
        assert not recorder.take_notes()
    assert capfd.readouterr() == ("", ""), "the terminal is the sweep's"
    trained = [stage for stage in plan.stages if stage.epochs]
    written = files(tmp_path)
    assert len(list(tmp_path.rglob("*.wandb"))) == len(trained)
    assert set(written) == {f"{stage.key[:16]}-{run.name}" for stage in trained}
    for stage in trained:
        record, labels, history, summary = read(written[f"{stage.key[:16]}-{run.name}"])
        assert (record.project, record.run_group, record.job_type) == ("raylth", "tiny", stage.kind)
        assert f"({record.display_name})" in stage.name
        for label in ("arm", "sparsity", "rewind_epoch", "width", "replicate", "match_method"):
            assert labels.get(label) == stage.labels.get(label)
        assert (labels["model"], labels["dataset"]) == ("mlp", "mnist1d")
        assert (labels["lr"], labels["batch_size"]) == (stage.settings.recipe.lr, stage.settings.recipe.batch_size)
        metrics = store.metrics(stage.key)
        curve = [{name: value for name, value in point.items() if name != "test_top5"} for point in metrics["curve"]]
        told = [{"epoch": point["_step"], **{k: v for k, v in point.items() if not k.startswith("_")}} for point in history]
        assert told == curve
        for name in ("test_accuracy", "test_loss", "mask_sparsity", "seconds"):
            assert summary[name] == metrics[name]
        assert summary["status"] == "done"


def test_a_run_that_was_cut_off_is_written_anew_and_others_stay(trained, tmp_path):
    config = WandbConfig(folder=str(tmp_path))
    for network in trained[:2]:
        Wandb(config, "tiny", "tiny-00000000").write(network)
    (whole, cut) = (files(tmp_path)[f"{network.key[:16]}-tiny-00000000"] for network in trained[:2])
    cut.write_bytes(cut.read_bytes()[:-100])
    (listed,) = tmp_path.glob("written-*.txt")
    listed.write_text(listed.read_text().splitlines(keepends=True)[0])
    before = whole.stat().st_mtime_ns
    for network in trained[:2]:
        Wandb(config, "tiny", "tiny-00000000").write(network)
    assert len(list(tmp_path.rglob("*.wandb"))) == 2
    assert whole.stat().st_mtime_ns == before
    assert len(read(files(tmp_path)[f"{trained[1].key[:16]}-tiny-00000000"])[2]) == len(trained[1].curve)


ONLINE = """
import os, sys
from raylth.trackers import Network, check_exporters, wandb
from raylth.config.tracking import LogConfig, WandbConfig
try:
    config = WandbConfig(mode="online", folder="there")
    check_exporters(LogConfig(wandb=config))
    wandb.INIT_SECONDS = 2.0
    curve = [(epoch, {"train_loss": 1 / epoch}) for epoch in range(1, 1 + int(sys.argv[1]))]
    network = Network("0" * 64, "sparse", "arm=lth", {"arm": "lth"}, curve, {"status": "done"})
    wandb.Wandb(config, "tiny", "tiny-00000000").write(network)
except Exception as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(1)
"""


def online(folder, epochs, **variables):
    """What a fresh process that writes a network to a server says on stderr."""
    folder.mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**clean, "HOME": str(folder), "WANDB_BASE_URL": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", ONLINE, str(epochs)]
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60}
    return subprocess.run(command, env=environment, cwd=folder, check=False, **quiet).stderr


def test_a_server_without_a_key_is_refused_before_anything_starts(tmp_path):
    told = online(tmp_path, 2).splitlines()[-1]
    assert told == "ValueError: log.wandb: W&B has no API key for mode online: set WANDB_API_KEY or run wandb login"
    assert not (tmp_path / "there").exists()


def test_a_dead_server_is_an_error_after_no_long_wait(tmp_path):
    told = online(tmp_path, 2, WANDB_API_KEY="0" * 40)
    assert "CommError" in told
    assert "127.0.0.1:9: connect: connection refused" in told
    assert not list(tmp_path.rglob("written-*")), "it is written another time"


def test_a_server_has_each_epoch_once_from_whatever_machine(tmp_path):
    """W&B's client talks to a stand-in of its server, which keeps what it is sent."""
    with WandbServer() as server:
        variables = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.url}
        for machine, epochs in (("one", 3), ("one", 6), ("two", 5)):  # written; not again; a driver was killed after epoch 3
            told = online(tmp_path / machine, epochs, **variables)
            assert "Error" not in told
            assert "WARNING" not in told
            (name,) = server.runs
            assert name == "0000000000000000-tiny-00000000"
            expected = range(1, 1 + (3 if machine == "one" else 5))
            assert [line["_step"] for line in server.runs[name]["history"]] == list(expected)
        assert [line["train_loss"] for line in server.runs[name]["history"]] == [1 / epoch for epoch in expected]
        asked = server.runs[name]["asked"]
        assert (asked["project"], asked["groupName"], asked["jobType"]) == ("raylth", "tiny", "sparse")
        assert server.runs[name]["summaries"][-1]["status"] == "done"


@pytest.mark.parametrize("name", ["", "a/b", "a" * 129])
def test_a_project_that_wandb_would_refuse_is_refused(name):
    with pytest.raises(ValueError, match="is not the name of a W&B project"):
        WandbConfig(project=name)
