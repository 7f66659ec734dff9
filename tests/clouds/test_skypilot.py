"""The task file of SkyPilot, checked by SkyPilot itself in an environment of its own, and its commands by a shell."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "clusters/skypilot.yaml"
VERSION = "0.14.1"
UNREACHABLE = ("No solution found", "Failed to fetch", "error sending request", "not found in the package registry")
CHECK = """
import json, sys
import sky
def check(change):
    try:
        task = sky.Task.from_yaml_config({**config, **change}, env_overrides=[("STORAGE", "s3://bucket/store")])
    except Exception as error:
        return str(error)
    kinds = [(*each.accelerators, each.use_spot) for each in task.resources]
    return {"nodes": task.num_nodes, "kinds": sorted(kinds), "envs": task.envs}
config, changes = json.load(sys.stdin)
print(json.dumps([check(change) for change in changes]))
"""


@pytest.fixture
def task() -> dict:
    return yaml.safe_load(FILE.read_text())


@pytest.mark.timeout(300)  # the first time, in which it is downloaded
def test_skypilot_takes_the_file_and_knows_every_field(task, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where it would leave its files
    changes = [{}, {"num_node": 1}, {"resources": {"accelerator": "L4"}}]
    words = [Path(sys.executable).parent / "uv", "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable]
    monkeypatch.setenv(
        "UV_CACHE_DIR", subprocess.run([words[0], "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    )
    done = subprocess.run(
        [*words, "--with", f"skypilot=={VERSION}", "python", "-c", CHECK],
        input=json.dumps([task, changes]), capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    if done.returncode and any(reason in done.stderr for reason in UNREACHABLE):
        pytest.skip(f"skypilot {VERSION} is not to be had: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    taken, *refused = json.loads(done.stdout.splitlines()[-1])
    assert taken["nodes"] == task["num_nodes"]
    assert taken["kinds"] == sorted([name, spot] for name in task["resources"]["accelerators"] for spot in (False, True))
    assert taken["envs"] == {**task["envs"], "STORAGE": "s3://bucket/store"}
    assert all(f"did you mean '{name}'" in said for name, said in zip(("num_nodes", "accelerators"), refused, strict=True))


def test_its_machines_have_the_files_and_the_setup_of_the_others(task):
    assert task["file_mounts"] == yaml.safe_load((ROOT / "cluster.yaml").read_text())["file_mounts"]
    assert "sh ~/raylth/scripts/node-setup.sh" in task["setup"]
    assert "ray stop" not in task["run"], "it would end SkyPilot's own Ray"
    assert (ROOT / task["envs"]["SWEEP"]).exists()


@pytest.mark.parametrize("part", ["setup", "run"])
def test_a_shell_reads_its_commands(task, part):
    subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    assert set(re.findall(r"python -m (raylth[\w.]*)", task["run"])) == {
        "raylth.sweep",
        "raylth.cluster.nodes.preemption_notice",
    }
