"""Which Ray a sweep uses: its own, unless somebody says otherwise; and machines on which Ray does not start by itself."""

import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from raylth.cluster import address
from raylth.cluster.address import ClusterError, Joining, choose_cluster
from tests.cluster.local_nodes import environment_with, started
from tests.conftest import tiny_sweep

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment that says nothing of Ray; a folder in which Ray would remember its cluster."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    folder = Path("/tmp") / f"raylth-{os.getpid()}"
    (folder / "ray").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def remember(folder, where):
    (folder / "ray" / "ray_current_cluster").write_text(where)


class Silent(http.server.BaseHTTPRequestHandler):
    def log_message(self, format, *args): ...


@contextlib.contextmanager
def other_program():
    """A port behind which another program answers."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def deaf_program():
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def nobody():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"127.0.0.1:{port}"


def test_without_a_cluster_ray_is_started_here(bare):
    assert choose_cluster(None) == ("local", "")
    assert str(Joining(*choose_cluster(None)[:1])) == "starting Ray on this machine"
    with pytest.raises(ClusterError, match="Ray is not running on this machine: ray start has recorded no address"):
        choose_cluster("auto")


@pytest.mark.parametrize("program", [nobody, other_program, deaf_program])
def test_what_does_not_answer_as_ray_is_not_waited_for(bare, program, monkeypatch):
    monkeypatch.setattr(address, "RAY_SECONDS", 2.0)
    begun = time.monotonic()
    with program() as where:
        remember(bare, where)
        assert choose_cluster(None) == (
            "local",
            f"that at {where}, which {bare}/ray/ray_current_cluster names, does not answer",
        )
        with pytest.raises(ClusterError, match=f"no Ray cluster answers at {where}"):
            choose_cluster(where)
        monkeypatch.setenv("RAY_ADDRESS", where)
        with pytest.raises(ClusterError, match=f"no Ray cluster answers at {where}"):
            choose_cluster(None)
        assert choose_cluster("local")[0] == "local"
    assert time.monotonic() - begun < 20


def test_a_cluster_of_ones_own_is_joined_and_another_users_is_not(bare, tmp_path, monkeypatch):
    environment = environment_with(tmp_path, "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", environment["RAY_AUTH_TOKEN_PATH"])
    with started({**environment, "TMPDIR": str(bare)}):
        file = bare / "ray" / "ray_current_cluster"
        while not file.exists():  # written by ray start, at its end
            time.sleep(0.1)
        live = file.read_text().strip()
        assert choose_cluster(None) == (live, "it runs on this machine; --address local starts another")
        assert os.environ["RAY_AUTH_MODE"] == "token", "it is sent the token"
        os.chown(file, 54321, -1)
        assert choose_cluster(None)[0] == live, "the file may be older than the cluster, and another user's"
        monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        refused = rf"the Ray cluster at {live} rejects this token \(RAY_AUTH_TOKEN, .*\)"
        with pytest.raises(ClusterError, match=f"{refused}; --address local starts another"):
            choose_cluster(None)
        with pytest.raises(ClusterError, match=f"{refused}$"):
            choose_cluster(live)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert choose_cluster(None) == ("local", f"that at {live} is another user's; --address auto joins it")
        assert choose_cluster("auto")[0] == live
        assert choose_cluster(live)[0] == live


def test_an_unknown_way_to_authenticate_is_refused(bare, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "foo")
    with pytest.raises(ClusterError, match=r"RAY_AUTH_MODE: 'foo' is unknown \(known: disabled, token, k8s\)"):
        choose_cluster(None)


def test_a_folder_that_is_too_long_for_sockets(bare, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp/" + "t" * 115)
    assert choose_cluster(None) == ("local", "in /tmp: TMPDIR has 120 characters, and the paths of Ray's sockets leave 39")
    assert os.environ["RAY_TMPDIR"] == "/tmp"
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "r" * 115)
    with pytest.raises(ClusterError, match=r"RAY_TMPDIR: /tmp/r+ has 120 characters, .*: set RAY_TMPDIR to a shorter folder"):
        choose_cluster(None)


def test_a_relative_folder_is_the_same_for_all_of_rays_processes(bare, monkeypatch):
    monkeypatch.chdir(bare)
    monkeypatch.setenv("TMPDIR", "here")
    monkeypatch.setenv("RAY_ADDRESS", " ")
    assert choose_cluster(None) == ("local", "")
    assert os.environ["RAY_TMPDIR"] == f"{bare}/here"


def smallest(folder: Path) -> list[str]:
    """Return a sweep of few stages, as arguments."""
    settings = tiny_sweep(
        sparse={"arms": ["naive"], "sparsities": [0.5], "rewinds": [0]}, data={"num_train": 200, "num_test": 50}
    ).model_dump(mode="json", exclude_defaults=True)
    file = folder / "smallest.yaml"
    file.write_text(yaml.safe_dump({**settings, "storage": str(folder / "store")}))
    return [str(file), "resources.pack=off"]


def run(words, folder, **changes):
    names = ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_ENABLE_UV_RUN_RUNTIME_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in names} | changes
    return subprocess.run(words, capture_output=True, text=True, timeout=200, check=False, cwd=folder, env=environment)


def test_a_sweep_started_by_uv_uploads_nothing(tmp_path):
    """Ray would pack the working folder for its workers, and refuse 650 MB."""
    folder = tmp_path / "work"
    folder.mkdir()
    with (folder / "checkpoints.bin").open("wb") as file:
        file.truncate(650 * 2**20)
    uv = str(Path(sys.executable).with_name("uv"))
    words = [uv, "run", "--no-project", "--active", "--offline", "python", "-m", "raylth.sweep", *smallest(tmp_path)]
    done = run(words, folder, VIRTUAL_ENV=sys.prefix, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "naive" in done.stdout


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_name_a_home_or_a_short_temporary_folder(tmp_path):
    """As in a container that runs under any number, and on a cluster whose jobs have folders of their own."""
    long = Path("/tmp") / f"raylth-{os.getpid()}" / ("t" * 100)
    long.mkdir(parents=True, exist_ok=True)
    try:
        for folder in (long, tmp_path):
            folder.chmod(0o777)
        for folder in tmp_path.parents:
            if folder.stat().st_mode & 0o005 != 0o005 and str(folder).startswith("/tmp/"):
                folder.chmod(0o755)
        may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # an interpreter below root's home
        words = [
            "setpriv",
            "--reuid=12345",
            "--regid=12345",
            "--clear-groups",
            *may_read,
            sys.executable,
            "-m",
            "raylth.sweep",
        ]
        done = run([*words, *smallest(tmp_path)], tmp_path, HOME="/", TMPDIR=str(long), PYTHONPATH=str(ROOT))
    finally:
        subprocess.run(["rm", "-rf", str(long.parent)], check=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting Ray on this machine (in /tmp: TMPDIR has " in done.stdout
