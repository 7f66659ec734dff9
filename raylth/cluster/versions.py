"""Whether all machines of a cluster run the same: what differs would differ in results, or fail in mid-sweep."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylth.cluster.address import ClusterError

__all__ = ["check_versions", "compare", "versions"]

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
                raise ClusterError(f"{name} is {ours} here and {found[name]} on {address}: install the same on both")


def check_versions() -> None:
    """Compare this process's versions with those of every machine of the cluster; ClusterError for the first difference."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    ask: Any = ray.remote(num_cpus=0)(versions)
    asked = {
        node["NodeManagerAddress"]: ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    }
    compare(versions(), dict(zip(asked, ray.get(list(asked.values())), strict=True)))
