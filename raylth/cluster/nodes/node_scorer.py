"""Which type of machine Ray's autoscaler asks for next: none that the cloud refuses, and on demand after spot.

Ray 2.60's second autoscaler asks for a refused type again and again. Its first notes what was refused, for half an hour,
and takes a score from outside (`RAY_AUTOSCALER_UTILIZATION_SCORER`, which scripts/node-start.sh sets to `score`).
"""

import functools
from pathlib import Path
from typing import Any

import yaml

from raylth.cluster.ray_private import BOOTSTRAP, is_node_type_available, utilization_score

__all__ = ["score"]


def score(
    node_resources: dict[str, Any], resources: list[dict[str, Any]], node_type: str, *, node_availability_summary: Any
) -> tuple[Any, ...] | None:
    """Return how well a type of machine serves what is asked for, higher is better; None when it serves nothing of it.

    What is to be had comes before what was refused, then Ray's own score, then the `priority` of the cluster file.
    """
    fit = utilization_score(node_resources, resources, node_availability_summary=node_availability_summary)
    if fit is None:
        return None
    return (is_node_type_available(node_availability_summary, node_type), *fit, _priorities(BOOTSTRAP).get(node_type, 0))


@functools.cache
def _priorities(bootstrap: str) -> dict[str, int]:
    types = yaml.safe_load(Path(bootstrap).expanduser().read_text())["available_node_types"]
    return {name: kind.get("priority", 0) for name, kind in types.items()}
