"""What a cluster has, and what it would have if its autoscaler started all that it may."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import yaml

from raylth.cluster.ray_private import BOOTSTRAP

__all__ = ["machines", "startable", "sums"]


def startable(config: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the resources of the workers that a cluster file lets Ray start: of each type in turn, up to its own limit."""
    types = config.get("available_node_types", {})
    workers = [kind for name, kind in types.items() if name != config.get("head_node_type") and kind.get("resources")]
    most = int(config.get("max_workers", 0))
    rounds = range(max((int(kind.get("max_workers", most)) for kind in workers), default=0))
    found = [dict(kind["resources"]) for turn in rounds for kind in workers if turn < int(kind.get("max_workers", most))]
    return found[:most]


def machines(bootstrap: str = BOOTSTRAP) -> list[dict[str, float]]:
    """Return what each machine has, and on the head of a cluster that grows what each that may come would have."""
    alive: Sequence[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    file = Path(bootstrap).expanduser()
    coming = startable(yaml.safe_load(file.read_text())) if file.is_file() else []
    for node in alive:  # those that are there are not to come
        same = [one for one in coming if all(node.get(name, 0.0) == one.get(name, 0.0) for name in ("CPU", "GPU"))]
        if same:
            coming.remove(same[0])
    return [*alive, *coming]


def sums(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return how many CPUs and GPUs machines have together."""
    return {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
