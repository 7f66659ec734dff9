"""Sweeps through a real Ray, from the command line, as a person runs them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from raylth.cli.sweep import main
from raylth.common.terminal import typed_python
from raylth.config.load import read_sweep
from raylth.report import load_curves, load_permutations, load_results
from raylth.stages import make_plan, run_plan
from raylth.store import Store
from tests.cluster.local_nodes import environment_with, started
from tests.conftest import tiny_sweep


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    settings = tiny_sweep().model_dump(mode="json", exclude_defaults=True) | {"storage": str(folder / "store")}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "raylth.sweep", *map(str, arguments)]


def sweep(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def interrupted(sweep_file) -> tuple[int, str]:
    """The sweep, and Ctrl-C four times after some stages: its exit status, and what it printed."""
    store = sweep_file.parent / "store"
    started = [*command(sweep_file), "--address", "local"]
    process = subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(store.glob("artefacts/*/*/MANIFEST.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(4):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole group gets it
        time.sleep(0.15)
    output, _ = process.communicate(timeout=60)
    (status,) = store.glob("runs/*/status.json")
    assert json.loads(status.read_text())["state"] == "stopped"
    return process.returncode, output


@pytest.fixture(scope="module")
def resumed_run(interrupted, sweep_file) -> subprocess.CompletedProcess:
    """The same command after that, to its end."""
    done = sweep(sweep_file)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def packed_run(sweep_file, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """The same sweep, its arms in packs of three; and its store."""
    store = tmp_path_factory.mktemp("packed") / "store"
    whole = "resources.match.cpus=2"  # so that no arm starts alone while its like wait for their matches
    done = sweep(sweep_file, f"storage={store}", "resources.pack=3", whole)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, store


def run_here(*arguments: object) -> int:
    """Run a command that trains nothing in this process: torch is imported already."""
    return main([str(argument) for argument in arguments])


def table_of(output: str) -> str:
    return output[output.index("tiny: mnist1d, mlp") :]


def test_a_sweep_runs_to_its_end_and_says_where_everything_is(packed_run, tmp_path):
    done, store = packed_run
    output = done.stdout
    assert re.search(r"dense 2/2, imp \d+/\d+, match 2/2, sparse 24/24", output)
    assert "Traceback" not in output + done.stderr
    assert not done.stderr, "Ray's own chatter must be quiet"
    (run,) = (store / "runs").iterdir()
    assert (run / "report/figures/accuracy_vs_rewind.png").read_bytes()[:4] == b"\x89PNG"
    assert f"report : {run}/report/report.html" in output
    assert "Accuracy against the rewind point" in (run / "report/report.html").read_text()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["config"]["name"] == "tiny"
    assert {"ray", "torch", "raylth"} <= set(manifest["packages"])
    for frame in (load_results(run), load_results(store)):
        assert (frame["status"] == "done").all()
        assert frame["key"].is_unique
        assert (frame["stage"] == "sparse").sum() == 24
    assert len(load_permutations(run)) == 2 * 3
    assert load_curves(run)["train_loss"].notna().all()
    with pytest.raises(FileNotFoundError, match="no results here"):
        load_results(tmp_path)


def test_the_second_run_trains_nothing_and_prints_the_same(resumed_run, sweep_file, capsys):
    assert run_here(sweep_file) == 0
    again = capsys.readouterr().out
    assert "stages to run" not in again
    assert "epochs/s" not in again
    assert re.match(r"tiny: nothing to train, all \d+ stages are in the store\n", again)
    assert table_of(again) == table_of(resumed_run.stdout)
    assert run_here(sweep_file, "--dry-run") == 0
    plan = capsys.readouterr().out
    assert re.search(r"sparse\s+│\s+24\s+│\s+24\s+│\s+0", plan)


def test_ray_gives_the_same_bits_as_one_process(resumed_run, sweep_file, tmp_path):
    """Whatever order Ray scheduled: artefacts and rows equal those of a plain loop over the plan."""
    config = read_sweep(sweep_file)
    plan, serial, parallel = make_plan(config), Store(tmp_path), Store(config.storage)
    run_plan(plan, serial)
    for stage in plan.stages:
        for key in stage.produces:
            for name in serial.files(key):
                np.testing.assert_array_equal(serial.read(key, name), parallel.read(key, name), err_msg=stage.name)
        one, other = serial.metrics(stage.key), parallel.metrics(stage.key)
        assert {**one, "seconds": 0, "pack": 0} == {**other, "seconds": 0, "pack": 0}


def test_a_training_that_diverges_is_a_result_and_is_not_tried_again(sweep_file, tmp_path, capsys):
    arguments = [f"storage={tmp_path}", "sparse.lr=900", "sparse.sparsities=[0.3]", "sparse.arms=[lth, naive]"]
    done = sweep(sweep_file, *arguments)
    assert done.returncode == 0
    assert "dense 2/2" in done.stdout
    assert re.search(r"diverged: sparse\(.*arm=lth.*\): training diverged in epoch 1", done.stdout)
    assert "Traceback" not in done.stdout + done.stderr
    rows = load_results(tmp_path)
    assert set(rows[rows["status"] == "diverged"]["stage"]) == {"sparse"}
    assert rows[rows["status"] == "diverged"]["error"].str.startswith("training diverged").all()
    assert run_here(sweep_file, *arguments) == 0
    again = capsys.readouterr().out
    assert "to run" not in again
    assert re.match(r"tiny: nothing to train, \d+ of \d+ stages are done, and diverged ones are not tried again\n", again)
    assert "diverged: sparse(" in again


def test_a_dense_network_that_diverges_blocks_what_needs_it(sweep_file, tmp_path):
    done = sweep(sweep_file, f"storage={tmp_path}", "dense.lr=900", "sparse.sparsities=[0.3]", "sparse.arms=[lth]")
    assert done.returncode == 1
    assert re.search(r"diverged: dense\(.*network=A.*\n +blocks 4: ", done.stdout)
    assert set(load_results(tmp_path)["status"]) == {"diverged"}


def test_ctrl_c_however_often_saves_what_is_finished_and_the_same_command_resumes_it(interrupted, resumed_run, sweep_file):
    status, output = interrupted
    assert status == 130, output
    assert output.count("stopped") == 1, output
    assert "Traceback" not in output
    saved = re.search(r"stopped: (\d+) of (\d+) stages are finished and saved", output)
    assert saved
    assert 0 < int(saved[1]) < int(saved[2])
    assert f"  {typed_python()} -m raylth.sweep {sweep_file} --address local\n" in output
    held = re.search(r"(\d+) are in the store already", resumed_run.stdout)
    assert held
    assert int(held[1]) >= int(saved[1])


def test_a_share_that_no_node_has_is_refused_before_anything_is_made(sweep_file, tmp_path):
    settings = yaml.safe_load(sweep_file.read_text()) | {"storage": str(tmp_path / "store")}
    settings["resources"] = {"sparse": {"cpus": 4096}}
    (tmp_path / "big.yaml").write_text(yaml.safe_dump(settings))
    done = sweep(tmp_path / "big.yaml")
    assert done.returncode == 2
    line = (tmp_path / "big.yaml").read_text().splitlines().index("    cpus: 4096") + 1
    place = re.escape(f"{tmp_path}/big.yaml:{line}")
    assert re.fullmatch(rf"{place}: resources\.sparse\.cpus: 4096 asked for, but .* node has \d+ CPUs\n", done.stderr)
    assert "to run" not in done.stdout
    assert not (tmp_path / "store").exists()


@pytest.fixture
def token_cluster(tmp_path):
    """A cluster of one node that `ray start` made and that asks for a token; the environment to reach it."""
    with started(environment_with(tmp_path, "token")) as address:
        yield address, environment_with(tmp_path, None)


def test_a_sweep_joins_a_running_cluster_that_asks_for_a_token(resumed_run, sweep_file, token_cluster, tmp_path):
    address, environment = token_cluster
    small = [f"storage={tmp_path / 'store'}", "sparse.arms=[naive]", "sparse.sparsities=[0.8]", "sparse.rewinds=[0]"]
    arguments = command(sweep_file, *small, "--address", address)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (load_results(tmp_path / "store")["status"] == "done").all()
    assert not any("RAY_AUTH" in line for line in done.stdout.splitlines())


def assert_as_alone(store: Path, alone: Path) -> list[int]:
    """Each network is the one that trained alone, to rounding; returns with how many each trained together."""
    packed = load_results(store).set_index("key")
    one = load_results(alone).set_index("key").loc[packed.index]
    assert (packed["status"] == "done").all()
    assert (packed["test_accuracy"] - one["test_accuracy"]).abs().max() < 5
    assert packed["train_loss"].to_numpy() == pytest.approx(one["train_loss"].to_numpy(), rel=0.05)
    return packed["pack"].tolist()


def test_packs_train_the_same_networks(packed_run, resumed_run, sweep_file):
    """Every network is there, and those that trained together say so."""
    _, store = packed_run
    assert len(load_results(store)) == len(load_results(sweep_file.parent / "store"))
    sizes = assert_as_alone(store, sweep_file.parent / "store")
    assert max(sizes) <= 3
    assert sizes.count(3) >= 6, sizes


def test_the_size_of_packs_is_measured_once(resumed_run, sweep_file, tmp_path):
    arms = ["sparse.arms=[lth, naive, random]", "sparse.sparsities=[0.5]"]
    done = sweep(sweep_file, f"storage={tmp_path}", "resources.pack=auto", *arms)
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(assert_as_alone(tmp_path, sweep_file.parent / "store")) <= 32
    assert len(list((tmp_path / "measured").glob("pack-*.json"))) == 1
