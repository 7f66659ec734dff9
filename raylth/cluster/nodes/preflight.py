"""Whether a cluster is fit for a sweep: all machines run the same, and strangers are kept out."""

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylth.cluster.address import ClusterError
from raylth.cluster.nodes.capacity import machines
from raylth.cluster.ray_private import asks_for_token

__all__ = ["check_cluster", "compare", "on_all_machines", "versions"]

PACKAGES = ("raylth", "torch", "ray", "numpy")


def versions() -> dict[str, str]:
    """Return what runs on this machine: Python, and the packages that decide results."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def compare(here: Mapping[str, str], there: Mapping[str, Mapping[str, str]]) -> None:
    """Raise ClusterError for the first difference between this machine and others, which are named by address."""
    for address, found in there.items():
        for name, ours in here.items():
            if found[name] != ours:
                raise ClusterError(f"{name} is {ours} here and {found[name]} on {address}: install the same version on both")


def check_cluster(allow_open: bool = False) -> None:
    """Compare the versions of all machines that are there; refuse several of them where no token is asked for.

    A cluster of this machine alone may do without. `allow_open` lets the others do so, too. Raises ClusterError.
    """
    compare(versions(), dict(on_all_machines(versions)))
    guarded = on_all_machines(asks_for_token)
    ours = {found.address for addresses in psutil.net_if_addrs().values() for found in addresses}
    others = sorted({address for address, _ in guarded} - ours - {ray.util.get_node_ip_address()})
    if len(machines()) > len(guarded):
        others.append("those that it may start")
    if others and not all(asks for _, asks in guarded) and not allow_open:
        raise ClusterError(
            f"this cluster (this machine and {', '.join(others[:3])}) requires no token: whoever reaches its port "
            f"can run code there. Start Ray with RAY_AUTH_MODE=token on every machine, or allow it with --without-token"
        )


def on_all_machines(
    function: Callable[[], Any], only: Callable[[Mapping[str, Any]], bool] = lambda node: True
) -> list[tuple[str, Any]]:
    """Call a function on every live machine that `only` takes; returns (address, answer) of each. One that dies has none."""
    nodes = [node for node in ray.nodes() if node["Alive"] and only(node)]
    ask: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = [ask.options(scheduling_strategy=place).remote() for place in there]
    found = []
    for node, reference in zip(nodes, asked, strict=True):
        try:
            found.append((node["NodeManagerAddress"], ray.get(reference)))
        except ray.exceptions.RayError as error:
            if any(other["Alive"] and other["NodeID"] == node["NodeID"] for other in ray.nodes()):
                line = str(error).strip().splitlines()[0]
                raise ClusterError(f"{node['NodeManagerAddress']} does not answer: {line}") from error
    return found
