"""Record sent to experiment trackers: a trained network's name and labels, its curve, its final numbers."""

from dataclasses import dataclass
from typing import Any

from raylth.stages import Graph
from raylth.stages.network_rows import MEASURED, RECIPE
from raylth.stages.result_rows import LABELS

__all__ = ["Network", "networks"]

CURVES = ("train_loss", "test_loss", "test_accuracy")


@dataclass(frozen=True)
class Network:
    """A network whose training has ended, as a finished sweep knows it."""

    key: str  # of its stage
    kind: str  # of the stage that trained it
    name: str  # its arm and cell, for people
    labels: dict[str, Any]  # those that it has, and its training's epochs, learning rate, batch size and optimizer
    curve: list[tuple[int, dict[str, float]]]  # (epoch, what was measured after it)
    final: dict[str, Any]  # numbers of the trained network, and its status


def networks(rows: dict[str, list[dict[str, Any]]], graph: Graph) -> list[Network]:
    """Return the networks among rows, done or diverged; what failed is trained again, and written then."""
    curves: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for point in rows["curves"]:
        values = {name: point[name] for name in CURVES if point.get(name) is not None}
        curves.setdefault(point["key"], []).append((point["epoch"], values))
    found = []
    for row in rows["results"]:
        stage = graph.stages[row["key"]]
        if stage.epochs and row["status"] in ("done", "diverged"):
            name = stage.name.partition("(")[2].removesuffix(")")
            labels = {label: row[label] for label in ("dataset", "model", *LABELS, *RECIPE) if row.get(label) is not None}
            labels["epochs"] = stage.epochs
            final = {name: row[name] for name in (*MEASURED, "status", "error") if row.get(name) is not None}
            found.append(Network(stage.key, stage.kind, name, labels, curves.get(stage.key, []), final))
    return found
