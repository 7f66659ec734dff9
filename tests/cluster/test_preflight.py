"""A cluster whose machines run something else is refused before anything starts."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raylth.cluster.address import ClusterError
from raylth.cluster.preflight import compare, versions


def test_the_first_difference_is_named_with_both_versions():
    here = versions()
    assert set(here) == {"Python", "raylth", "torch", "ray", "numpy"}
    compare(here, {"10.0.0.1": here, "10.0.0.2": dict(here)})
    new, old = {**here, "torch": "2.15.0"}, {**here, "torch": "2.11.0"}
    with pytest.raises(ClusterError) as caught:
        compare(new, {"10.0.0.1": new, "10.0.0.2": old})
    assert str(caught.value) == "torch is 2.15.0 here and 2.11.0 on 10.0.0.2: install the same on both"
    with pytest.raises(ClusterError, match=r"raylth is .* here and not installed on 10\.0\.0\.2"):
        compare(here, {"10.0.0.2": {**here, "raylth": "not installed"}})


TRY = """
import sys
import ray
from raylth.cluster.address import ClusterError
from raylth.cluster.preflight import check_cluster, on_all_machines

ray.init(address=sys.argv[1], log_to_driver=False)
print("machines", sorted(on_all_machines(lambda: 1)))
for allow_open in (False, True):
    try:
        check_cluster(allow_open)
        print("joined")
    except ClusterError as error:
        print(error)
"""


@pytest.fixture(params=[False, True], ids=["open", "with a token"])
def two_machines(request, tmp_path):
    """A cluster of two addresses, whether it asks for a token, and the environment of one who has it."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_MODE": "token" if request.param else "disabled"}
    common = ["--block", "--num-cpus", "1", "--disable-usage-stats"]
    ends = (
        ["--head", "--port", str(port), "--include-dashboard=false"],
        ["--address", f"127.0.0.1:{port}", "--node-ip-address", "127.0.0.2"],
    )
    with contextlib.ExitStack() as stack:
        for end in ends:
            words = [str(Path(sys.executable).with_name("ray")), "start", *common, *end]
            process = stack.enter_context(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True))
            stack.callback(process.terminate)
            assert any("Ray runtime started" in line for line in process.stdout), "a node did not start"
        yield f"127.0.0.1:{port}", request.param, environment


def test_several_machines_that_ask_nobody_for_a_token_are_refused(two_machines):
    address, asks, environment = two_machines
    words = [sys.executable, "-c", TRY, address]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    machines, closed, allowed = done.stdout.splitlines()
    assert "'127.0.0.2'" in machines
    assert machines.count(".") == 6, machines
    assert allowed == "joined"
    refused = "this cluster (this machine and 127.0.0.2) asks nobody for a token"
    assert closed == "joined" if asks else closed.startswith(refused)
    assert asks or closed.endswith("or allow it with --without-token")
