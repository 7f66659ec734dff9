"""Result rows: what a plan calls a network, joined with what its artefact measured."""

from typing import Any

from raylth.stages.graph import Graph
from raylth.stages.plan import Plan
from raylth.store import Store

__all__ = ["result_rows"]

MEASURED = (
    "mask_sparsity", "model_sparsity", "epochs", "test_accuracy", "test_loss", "train_loss", "seconds", "device",
    "data_sha256",
)  # fmt: skip
LABELS = (
    "width", "replicate", "seed_a", "seed_b", "network", "arm", "sparsity", "imp_round", "landing", "rewind_epoch",
    "match_epoch", "match_method", "schedule",
)  # fmt: skip


def result_rows(plan: Plan, graph: Graph, store: Store, run: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each dataset: "results" (networks), "curves" (epochs), "permutations" (groups of a match),
    "barriers" (corrections and splits of a line).

    A network has a row as soon as it is done, and also when it diverged or failed (`status`, with the reason in `error`).
    """
    config = plan.config
    tables: dict[str, list[dict[str, Any]]] = {"results": [], "curves": [], "permutations": [], "barriers": []}
    for key, stage in graph.stages.items():
        state = graph.states[key]
        if state not in ("done", "diverged", "failed"):
            continue
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
        if stage.kind == "match":
            for group, correlation in metrics.get("objective", {}).items():
                quality = {"correlation": correlation, "fixed_share": metrics["fixed_share"][group]}
                tables["permutations"].append({**identity, "group": group, **quality, "samples": metrics.get("samples")})
            continue
        if stage.kind == "connect":
            tables["barriers"] += [{**identity, **found} for found in metrics.get("barriers", [])]
            continue
        measured = {name: metrics.get(name) for name in MEASURED}
        status = {"status": state, "error": graph.errors.get(key)}
        tables["results"].append({**identity, **measured, **status})
        tables["curves"] += [{"key": key, "run": run, **point} for point in metrics.get("curve", [])]
    return tables
