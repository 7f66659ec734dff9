"""Result rows: what a plan calls a network, joined with what its artefact measured."""

from collections.abc import Iterable
from typing import Any

from raylth.stages.graph import Graph
from raylth.stages.lineage import LINEAGE, lineage
from raylth.stages.planning.plan import Plan
from raylth.store import Store
from raylth.store.tables import DATASETS

__all__ = ["result_rows"]

MEASURED = (
    "mask_sparsity", "model_sparsity", "epochs", "test_accuracy", "test_top5", "test_loss", "train_loss", "seconds", "device",
    "pack", "engine", "workers", "precision",
)  # fmt: skip
LABELS = (
    "width", "replicate", "seed_a", "seed_b", "network", "arm", "sparsity", "imp_round", "landing", "rewind_epoch",
    "match_epoch", "match_method", "match_samples", "schedule", "member", "repeats",
)  # fmt: skip


def result_rows(
    plan: Plan, graph: Graph, store: Store, run: str, keys: Iterable[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each dataset: "results" (networks), "curves" (epochs), "permutations" (groups of a match),
    "barriers" (corrections and splits of a line), "lines" (its points), "planes" (their points), "ensembles" (sets of
    networks) and "masks" (layers of a mask, or of two), of all stages or of those with the given keys.

    A network has a row as soon as it is done, and also when it diverged or failed (`status`, with the reason in `error`).
    """
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in DATASETS}
    for key in graph.stages if keys is None else keys:
        if graph.states[key] in ("done", "diverged", "failed"):
            _add_rows(tables, plan, graph, store, run, key)
    return tables


def _add_rows(tables: dict[str, list[dict[str, Any]]], plan: Plan, graph: Graph, store: Store, run: str, key: str) -> None:
    config, stage, state = plan.config, graph.stages[key], graph.states[key]
    identity = {
        "key": key,
        "run": run,
        "sweep": config.name,
        "stage": stage.kind,
        "dataset": config.data.name,
        "model": config.model.name,
        **{label: stage.labels.get(label) for label in LABELS},
    }
    metrics = {} if state == "failed" else store.metrics(key)
    identity["data_sha256"] = metrics.get("data_sha256")
    if stage.kind == "match":
        identity["carries_masks"] = stage.labels["carries_masks"]
        for group, correlation in metrics.get("objective", {}).items():
            quality = {"correlation": correlation, "fixed_share": metrics["fixed_share"][group]}
            tables["permutations"].append({**identity, "unit_group": group, **quality, "samples": metrics.get("samples")})
    elif stage.kind == "ensemble":
        set_number = stage.labels["set_number"]
        tables["ensembles"] += [{**identity, "set_number": set_number, **metrics["ensemble"]}] if state == "done" else []
    elif stage.kind == "connect":
        identity |= {"between": stage.labels["between"], "carries_masks": stage.labels.get("carries_masks")}
        tables["barriers"] += [{**identity, **found} for found in metrics.get("barriers", [])]
        tables["lines"] += [{**identity, **found} for found in metrics.get("line", [])]
    elif stage.kind == "plane":
        identity |= {"between": stage.labels["between"], "correction": stage.settings["correction"]}
        corners = dict(zip("abc", stage.labels["between"].split(", "), strict=True))  # role -> network, for people
        for found in metrics.get("points", []):
            tables["planes"].append({**identity, **found, "corner": corners.get(found["corner"], found["corner"])})
    elif stage.kind == "overlap":
        tables["masks"] += [{**identity, **found} for found in metrics.get("layers", [])]
    else:
        measured = {name: metrics.get(name) for name in MEASURED}
        measured |= lineage(stage, graph) if stage.kind == "sparse" else dict.fromkeys(LINEAGE)
        tables["results"].append({**identity, **measured, "status": state, "error": graph.errors.get(key)})
        tables["curves"] += [{"key": key, "run": run, **point} for point in metrics.get("curve", [])]
