"""`ray up clusters/local.yaml` on two machines that only SSH reaches, a sweep on them, and the way down."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from raylth.report import load_results
from tests.clouds.machines import Machines, can_be_made

ROOT = Path(__file__).parents[2]
MISSING = None if os.environ.get("CI") else can_be_made("sshd", "ssh-keygen", "rsync")  # CI is never without
pytestmark = [pytest.mark.skipif(MISSING is not None, reason=str(MISSING)), pytest.mark.timeout(600)]
BIN = Path(sys.executable).parent
SETTINGS = {
    "RAYLTH_LIFETIME_HOURS": "0",
    "RAYLTH_SCRATCH": "",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # until a worker ends whose head is gone: 60 where nobody waits for it
}
SWEEP = """
name: far
storage: {store}
data: {{name: mnist1d, num_train: 500, num_test: 100}}
model: {{name: mlp}}
seeds: {{replicates: 1}}
dense: {{epochs: 4}}
imp: {{epochs_per_round: 1}}
sparse: {{arms: [lth, permuted], sparsities: [0.3], rewinds: [1]}}
resources: {{dense: {{workers: 2, cpus: {cores}}}}}
"""


class Cluster:
    """What a person at a laptop has: a cluster file, a token and a key."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "laptop"
        self.home.mkdir()
        path = f"{BIN}:{os.environ['PATH']}"
        self.environment = {**os.environ, "HOME": str(self.home), "PATH": path, "RAY_AUTH_MODE": "token"}
        self.environment.pop("RAY_AUTH_TOKEN", None)
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "dist"), str(ROOT)], check=True
        )
        subprocess.run([BIN / "ray", "get-auth-token", "--generate"], env=self.environment, check=True, capture_output=True)
        self.machines = Machines(folder, 2, SETTINGS)
        for index in range(2):
            self._install(self.machines.home(index) / "raylth")
        self.file = folder / "cluster.yaml"
        config = yaml.safe_load((ROOT / "clusters/local.yaml").read_text())
        head, worker = self.machines.addresses
        config["provider"] |= {"head_ip": head, "worker_ips": [worker]}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.machines.key)}
        places = {"dist": folder / "dist", "~/.ray/auth_token": self.home / ".ray/auth_token"}
        mounts = config["file_mounts"]
        config["file_mounts"] = {there: str(places.get(here, ROOT / here)) for there, here in mounts.items()}
        self.file.write_text(yaml.safe_dump(config))

    def _install(self, there: Path) -> None:
        """Do what node-setup.sh would take minutes for; it finds the environment that the wheel and the versions ask for."""
        there.mkdir()
        (there / "venv").symlink_to(sys.prefix)
        (wheel,) = (self.folder / "dist").glob("raylth-*.whl")
        content = wheel.read_bytes() + (ROOT / "constraints.txt").read_bytes()
        (there / "environment").write_text(f"{hashlib.sha256(content).hexdigest()}  -\n")

    def ray(self, *words: str, timeout: float = 240) -> str:
        """Run a command of Ray at the laptop; returns what it printed."""
        options = {"env": self.environment, "cwd": self.folder, "timeout": timeout}
        done = subprocess.run([str(BIN / "ray"), *words], capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def raylth(self, *words: object) -> subprocess.CompletedProcess:
        """Run a command of ours at the laptop."""
        options = {"env": self.environment, "cwd": self.folder, "timeout": 120}
        command = [sys.executable, "-m", f"raylth.{words[0]}", *map(str, words[1:])]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    def wait_for_end(self, asking: str) -> None:
        """Ask for the progress of the sweep, with the command that it printed, until it has finished."""
        deadline, told = time.monotonic() + 180, ""
        while "far" not in told or ": finished, reported" not in told:
            assert time.monotonic() < deadline, told
            time.sleep(2)
            told = self.ray(*shlex.split(asking))

    def wait_for_nodes(self, number: int) -> None:
        """The head's autoscaler sets the workers up, after `ray up` has ended."""
        command = "RAY_AUTH_MODE=token ~/raylth/venv/bin/ray status"
        deadline = time.monotonic() + 120
        while True:
            words = self.machines.ssh(self.machines.addresses[0], command)
            status = subprocess.run(words, capture_output=True, text=True, check=False).stdout
            if f"0.0/{number * os.cpu_count()}.0 CPU" in status:
                return
            assert time.monotonic() < deadline, status
            time.sleep(1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("clouds"))
    yield made
    made.machines.stop()


JOIN = """
import ray
ray.init(address="{address}:6379", log_to_driver=False)
print("joined", len(ray.nodes()))
"""


def joins(cluster: Cluster, **environment: str) -> subprocess.CompletedProcess:
    """Try to join from outside, as somebody who reaches the port."""
    words = [sys.executable, "-c", JOIN.format(address=cluster.machines.addresses[0])]
    clean = {name: value for name, value in cluster.environment.items() if name != "RAY_AUTH_MODE"}
    stranger = {**clean, "HOME": str(cluster.folder), **environment}
    return subprocess.run(words, env=stranger, capture_output=True, text=True, timeout=120, check=False)


def test_ray_up_a_sweep_and_ray_down(cluster):
    cluster.ray("up", "-y", "--no-config-cache", str(cluster.file))
    cluster.wait_for_nodes(2)
    token = cluster.machines.home(1) / ".ray/auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() == (cluster.home / ".ray/auth_token").read_text()
    sweep = cluster.folder / "far.yaml"
    sweep.write_text(SWEEP.format(store=cluster.folder / "store", cores=os.cpu_count()))
    wrong = cluster.raylth("sweep", sweep, "sparse.arms=[naiv]", "--cluster", cluster.file)
    assert wrong.returncode == 2
    assert "naiv" in wrong.stderr, "said here, before anything is sent"
    missing = cluster.raylth("sweep", sweep, "data.name=digits", "resources.dense.cpus=4000", "--cluster", cluster.file)
    assert missing.returncode == 2, "said there"
    assert "4000" in missing.stderr
    sent = cluster.raylth("sweep", sweep, "--cluster", cluster.file)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "joining Ray at" in sent.stdout, sent.stdout
    assert cluster.machines.num_processes(0, "raylth.sweep sent/far.yaml"), "it continues without us"
    cluster.wait_for_end(re.findall(r"^progress: ray (exec .*)$", sent.stdout, re.MULTILINE)[0])
    rows = load_results(cluster.folder / "store")
    assert set(rows["status"]) == {"done"}
    assert set(rows.query("stage == 'dense'")["workers"]) == {2}, "one of all cores of each machine"

    without, wrong = joins(cluster), joins(cluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    for refused in (without, wrong):
        assert refused.returncode != 0
        assert "joined" not in refused.stdout
    right = joins(cluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=(cluster.home / ".ray/auth_token").read_text().strip())
    assert "joined" in right.stdout, right.stderr

    cluster.ray("down", "-y", str(cluster.file))
    deadline = time.monotonic() + 60
    while any(cluster.machines.num_processes(index, name) for index in range(2) for name in ("raylet", "gcs_server")):
        assert time.monotonic() < deadline, "Ray still runs somewhere"
        time.sleep(1)
