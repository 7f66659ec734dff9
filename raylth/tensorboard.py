"""TensorBoard files: one run per network, as it finishes, with its curve and its final numbers."""

import re
from pathlib import Path
from typing import Any

from raylth.stages import Graph

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes a sweep's networks below `folder/<sweep>/<kind>/<network>`, each once; Tune's own files would show its trials,
    which are batches of stages."""

    def __init__(self, folder: str, sweep: str) -> None:
        self.folder = Path(folder).expanduser() / sweep

    def write(self, rows: dict[str, list[dict[str, Any]]], graph: Graph) -> None:
        """Write the networks among finished rows, each into a run of its own, by epoch."""
        from tensorboardX import SummaryWriter  # comes with ray[tune]

        curves: dict[str, list[dict[str, Any]]] = {}
        for point in rows["curves"]:
            curves.setdefault(point["key"], []).append(point)
        for row in rows["results"]:
            points = curves.get(row["key"], [])
            if not points:
                continue
            name = re.sub(r"[^\w.=+-]+", "_", graph.stages[row["key"]].name.partition("(")[2]).strip("_")
            place = self.folder / row["stage"] / f"{name}-{row['key'][:8]}"
            if place.exists():  # written by an earlier run
                continue
            with SummaryWriter(str(place)) as writer:
                for point in points:
                    for measure in ("train_loss", "test_loss", "test_accuracy"):
                        if point.get(measure) is not None:
                            writer.add_scalar(measure, point[measure], point["epoch"])
