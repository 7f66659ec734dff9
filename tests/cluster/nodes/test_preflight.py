"""A cluster whose machines run something else is refused before anything starts."""

import subprocess
import sys

import pytest

from raylth.cluster.address import ClusterError
from raylth.cluster.nodes.preflight import compare, versions
from tests.cluster.local_nodes import environment_with, started


def test_the_first_difference_is_named_with_both_versions():
    here = versions()
    assert set(here) == {"Python", "raylth", "torch", "ray", "numpy"}
    compare(here, {"10.0.0.1": here, "10.0.0.2": dict(here)})
    new, old = {**here, "torch": "2.15.0"}, {**here, "torch": "2.11.0"}
    with pytest.raises(ClusterError) as caught:
        compare(new, {"10.0.0.1": new, "10.0.0.2": old})
    assert str(caught.value) == "torch is 2.15.0 here and 2.11.0 on 10.0.0.2: install the same version on both"
    with pytest.raises(ClusterError, match=r"raylth is .* here and not installed on 10\.0\.0\.2"):
        compare(here, {"10.0.0.2": {**here, "raylth": "not installed"}})


TRY = """
import sys
import ray
from raylth.cluster.address import ClusterError
from raylth.cluster.nodes.preflight import check_cluster, on_all_machines

ray.init(address=sys.argv[1], log_to_driver=False)
print("machines", sorted(dict(on_all_machines(lambda: 1))))
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
    environment = environment_with(tmp_path, "token" if request.param else "disabled")
    with started(environment, "127.0.0.2") as address:
        yield address, request.param, environment


def test_several_machines_that_ask_nobody_for_a_token_are_refused(two_machines):
    address, asks, environment = two_machines
    words = [sys.executable, "-c", TRY, address]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    machines, closed, allowed = done.stdout.splitlines()
    assert "'127.0.0.2'" in machines
    assert machines.count(".") == 6, machines
    assert allowed == "joined"
    refused = "this cluster (this machine and 127.0.0.2) requires no token"
    assert closed == "joined" if asks else closed.startswith(refused)
    assert asks or closed.endswith("or allow it with --without-token")


ALONE = """
import ray
from ray.cluster_utils import Cluster
from raylth.cluster.nodes import preflight

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
assert [answer for _, answer in preflight.on_all_machines(lambda: 1)] == [1, 1], "each of two nodes on one address"
preflight.check_cluster()
print("joined")
here = preflight.machines()
preflight.machines = lambda: [*here, {"CPU": 8.0}]
try:
    preflight.check_cluster()
except preflight.ClusterError as error:
    print(error)
"""


def test_a_cluster_of_this_machine_alone_needs_no_token_unless_it_may_grow(tmp_path):
    environment = environment_with(tmp_path, "disabled")
    words = [sys.executable, "-c", ALONE]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    alone, growing = done.stdout.splitlines()
    assert alone == "joined"
    assert "(this machine and those that it may start) requires no token" in growing
