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
import pandas as pd
import pytest
import yaml

from raylth.common.terminal import typed_python
from raylth.config.load import read_sweep
from raylth.report import load_curves, load_permutations, load_results
from raylth.stages import make_plan, run_plan
from raylth.store import Store
from tests.cluster.local_nodes import environment_with, started
from tests.conftest import tiny_sweep

NOT_REPRODUCIBLE = ["seconds", "pack"]


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
def first_run(sweep_file) -> subprocess.CompletedProcess:
    done = sweep(sweep_file)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def table_of(output: str) -> str:
    return output[output.index("tiny: mnist1d, mlp") :]


def test_a_sweep_runs_to_its_end_and_says_where_everything_is(first_run, sweep_file):
    output = first_run.stdout
    assert re.search(r"dense 2/2, imp \d+/\d+, match 2/2, sparse 24/24", output)
    assert "Traceback" not in output + first_run.stderr
    assert not first_run.stderr, "Ray's own chatter must be quiet"
    store = sweep_file.parent / "store"
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
        load_results(sweep_file.parent)


def test_the_second_run_trains_nothing_and_prints_the_same(first_run, sweep_file):
    again = sweep(sweep_file)
    assert again.returncode == 0
    assert "stages to run" not in again.stdout
    assert "epochs/s" not in again.stdout
    assert re.match(r"tiny: nothing to train, all \d+ stages are in the store\n", again.stdout)
    assert table_of(again.stdout) == table_of(first_run.stdout)
    plan = sweep(sweep_file, "--dry-run").stdout
    assert re.search(r"sparse\s+│\s+24\s+│\s+24\s+│\s+0", plan)


def test_ray_gives_the_same_bits_as_one_process(first_run, sweep_file, tmp_path):
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


def test_a_training_that_diverges_is_a_result_and_is_not_tried_again(sweep_file, tmp_path):
    arguments = [f"storage={tmp_path}", "sparse.lr=900", "sparse.sparsities=[0.3]", "sparse.arms=[lth, naive]"]
    done = sweep(sweep_file, *arguments)
    assert done.returncode == 0
    assert "dense 2/2" in done.stdout
    assert re.search(r"diverged: sparse\(.*arm=lth.*\): training diverged in epoch 1", done.stdout)
    assert "Traceback" not in done.stdout + done.stderr
    rows = load_results(tmp_path)
    assert set(rows[rows["status"] == "diverged"]["stage"]) == {"sparse"}
    assert rows[rows["status"] == "diverged"]["error"].str.startswith("training diverged").all()
    again = sweep(sweep_file, *arguments)
    assert again.returncode == 0
    assert "to run" not in again.stdout
    assert re.match(
        r"tiny: nothing to train, \d+ of \d+ stages are done, and what diverged is not tried again\n", again.stdout
    )
    assert "diverged: sparse(" in again.stdout


def test_a_dense_network_that_diverges_blocks_what_needs_it(sweep_file, tmp_path):
    done = sweep(sweep_file, f"storage={tmp_path}", "dense.lr=900", "sparse.sparsities=[0.3]", "sparse.arms=[lth]")
    assert done.returncode == 1
    assert re.search(r"diverged: dense\(.*network=A.*\n +blocks 4: ", done.stdout)
    assert set(load_results(tmp_path)["status"]) == {"diverged"}


def test_ctrl_c_however_often_saves_what_is_finished_and_the_same_command_goes_on(first_run, sweep_file, tmp_path):
    arguments = [sweep_file, f"storage={tmp_path}"]
    started = [*command(*arguments), "--address", "local"]
    process = subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("artefacts/*/*/MANIFEST.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(4):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole group gets it
        time.sleep(0.15)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert output.count("stopped") == 1, output
    assert "Traceback" not in output
    (status,) = tmp_path.glob("runs/*/status.json")
    assert json.loads(status.read_text())["state"] == "stopped"
    saved = re.search(r"stopped: (\d+) of (\d+) stages are finished and saved", output)
    assert saved
    assert 0 < int(saved[1]) < int(saved[2])
    assert f"  {typed_python()} -m raylth.sweep {sweep_file} storage={tmp_path} --address local\n" in output
    again = sweep(*arguments)
    assert again.returncode == 0
    held = re.search(r"(\d+) are in the store already", again.stdout)
    assert held
    assert int(held[1]) >= int(saved[1])
    reference = load_results(sweep_file.parent / "store").drop(columns=NOT_REPRODUCIBLE)
    pd.testing.assert_frame_equal(load_results(tmp_path).drop(columns=NOT_REPRODUCIBLE), reference, check_exact=True)


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


def test_a_sweep_joins_a_running_cluster_that_asks_for_a_token(first_run, sweep_file, token_cluster, tmp_path):
    address, environment = token_cluster
    small = [f"storage={tmp_path / 'store'}", "sparse.arms=[naive]", "sparse.sparsities=[0.8]", "sparse.rewinds=[0]"]
    arguments = command(sweep_file, *small, "--address", address)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (load_results(tmp_path / "store")["status"] == "done").all()
    assert not any("RAY_AUTH" in line for line in done.stdout.splitlines())


@pytest.mark.parametrize("pack", [3, "auto"])
def test_packs_train_the_same_networks(first_run, sweep_file, tmp_path, pack):
    """Every network is there, those that trained together say so, and each is the one that trained alone, to rounding."""
    whole = "resources.match.cpus=2"  # so that no arm starts alone while its like wait for their matches
    done = sweep(sweep_file, f"storage={tmp_path}/packed", f"resources.pack={pack}", whole)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = load_results(sweep_file.parent / "store").set_index("key")
    packed = load_results(tmp_path / "packed").set_index("key").loc[alone.index]
    assert (packed["status"] == "done").all()
    assert (packed["test_accuracy"] - alone["test_accuracy"]).abs().max() < 5
    assert packed["train_loss"].to_numpy() == pytest.approx(alone["train_loss"].to_numpy(), rel=0.05)
    sizes = packed["pack"].tolist()
    assert max(sizes) <= (3 if pack == 3 else 32)
    if pack == 3:
        assert sizes.count(3) >= 6, sizes
    else:
        assert len(list((tmp_path / "packed/measured").glob("pack-*.json"))) == 1
