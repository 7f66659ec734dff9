"""Real object stores on loopback: an S3 server (moto) and a Google Cloud Storage server, each a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

# For the whole session and the sweeps that tests start: a server is often started within a test, which restores variables.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")

SERVERS = {
    "s3": "from moto.server import main; main(['--host', '127.0.0.1', '--port', '{port}'])",
    "gs": "from gcp_storage_emulator.server import create_server; "
    "create_server('127.0.0.1', {port}, in_memory=True, default_bucket='bucket').run()",
}
OPTIONS = {
    "s3": "s3://bucket/{name}?region=us-east-1&scheme=http&endpoint_override=127.0.0.1%3A{port}",
    "gs": "gs://anonymous@bucket/{name}?scheme=http&endpoint_override=127.0.0.1%3A{port}&retry_limit_seconds=5",
}


class BucketServer:
    """A server that speaks one of the two protocols; `url(name)` is a prefix of its one bucket."""

    def __init__(self, scheme: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.scheme = scheme
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVERS[scheme].format(port=self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, f"the {scheme} server ended"
            assert time.monotonic() < deadline, f"the {scheme} server did not start"
            time.sleep(0.05)
        if scheme == "s3":
            from pyarrow.fs import FileSystem

            system, _ = FileSystem.from_uri(self.url("") + "&allow_bucket_creation=true")
            system.create_dir("bucket")

    def url(self, name: str) -> str:
        return OPTIONS[self.scheme].format(name=name, port=self.port)

    def pause(self) -> None:
        """Stop answering until `resume`."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture(scope="session")
def bucket_servers() -> Iterator[dict[str, BucketServer]]:
    """Both servers, for the whole session."""
    servers = {scheme: BucketServer(scheme) for scheme in SERVERS}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(params=["disk", "s3", "gs"])
def place(request: pytest.FixtureRequest, tmp_path) -> str:
    """Where a store may lie, once of each kind."""
    if request.param == "disk":
        return str(tmp_path / "store")
    servers: dict[str, BucketServer] = request.getfixturevalue("bucket_servers")
    return servers[request.param].url(tmp_path.name)
