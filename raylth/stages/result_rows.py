"""Result rows: what a plan calls a network, joined with what its artefact measured."""

from collections.abc import Iterable

from raylth.stages.graph import Graph
from raylth.stages.kind import Finished, Rows
from raylth.stages.kinds import kind_of
from raylth.stages.planning.plan import Plan
from raylth.store import Store
from raylth.store.tables import DATASETS

__all__ = ["result_rows"]

LABELS = (
    "width", "replicate", "seed_a", "seed_b", "network", "arm", "sparsity", "imp_round", "landing", "rewind_epoch",
    "match_epoch", "match_method", "match_samples", "mask_finder", "schedule", "member", "repeats",
)  # fmt: skip


def result_rows(plan: Plan, graph: Graph, store: Store, run: str, keys: Iterable[str] | None = None) -> Rows:
    """Return the rows of each dataset: "results" (networks), "curves" (epochs), "permutations" (groups of a match),
    "barriers" (corrections and splits of a line), "lines" (its points), "planes" (their points), "ensembles" (sets of
    networks), "masks" (layers of a mask, or of two) and "measurements" (quantities of a custom analysis), of all stages or of
    those with the given keys.

    A network has a row as soon as it is done, and also when it diverged or failed (`status`, with the reason in `error`).
    """
    tables: Rows = {name: [] for name in DATASETS}
    for key in graph.stages if keys is None else keys:
        if graph.states[key] in ("done", "diverged", "failed"):
            _add_rows(tables, plan, graph, store, run, key)
    return tables


def _add_rows(tables: Rows, plan: Plan, graph: Graph, store: Store, run: str, key: str) -> None:
    config, stage, state = plan.config, graph.stages[key], graph.states[key]
    metrics = {} if state == "failed" else store.metrics(key)
    identity = {
        "key": key,
        "run": run,
        "sweep": config.name,
        "stage": stage.kind,
        "dataset": config.data.name,
        "model": config.model.name,
        **{label: stage.labels.get(label) for label in LABELS},
        "data_sha256": metrics.get("data_sha256"),
    }
    for table, rows in kind_of(stage.kind).rows(Finished(stage, graph, state, metrics)).items():
        own = {name: value for name, value in identity.items() if name in DATASETS[table].names}
        tables[table] += [{**own, **row} for row in rows]
