"""Clusters that `ray start` makes, for tests that join them from outside."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def environment_with(folder: Path, mode: str | None) -> dict[str, str]:
    """Return an environment that holds a token, and says whether it is sent (None: says nothing)."""
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return {**kept, "RAY_AUTH_TOKEN_PATH": str(token), **({"RAY_AUTH_MODE": mode} if mode else {})}


@contextlib.contextmanager
def started(environment: dict[str, str], *others: str) -> Iterator[str]:
    """Start a head of one core, and a node for each further address; give the head's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = ["start", "--block", "--num-cpus", "1", "--disable-usage-stats"]
    nodes = [["--head", "--port", address.rpartition(":")[2], "--include-dashboard=false"]]
    nodes += [["--address", address, "--node-ip-address", other] for other in others]
    with contextlib.ExitStack() as stack:
        for node in nodes:
            words = [str(Path(sys.executable).with_name("ray")), *common, *node]
            process = stack.enter_context(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True))
            stack.callback(process.terminate)
            assert any("Ray runtime started" in line for line in process.stdout), "a node did not start"
        yield address
