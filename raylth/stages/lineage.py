"""Where a sparse network comes from: what it shares with the other arms of its cell, and the epochs that it cost."""

from typing import Any

from raylth.stages.graph import Graph
from raylth.stages.settings import MatchSettings
from raylth.stages.stage import Stage
from raylth.store import fingerprint

__all__ = ["LINEAGE", "lineage"]

LINEAGE = ("pair_key", "epochs_a", "epochs_imp", "epochs_b", "epochs_match")
OF_BOTH_NETWORKS = ("model", "data", "augment", "recipe")  # settings in which the dense A and B are alike
FORWARD = 1 / 3  # of the operations of a training step


def lineage(stage: Stage, graph: Graph) -> dict[str, Any]:
    """Return a sparse network's `pair_key`, and the epochs that had to be trained before it could be, by what they made.

    `pair_key` is the same for two arms of a cell and replicate exactly when they share both dense networks, A and B, and
    A's mask: only then is their difference a paired one. Every arm has it, also lth, which never meets B. The epochs are
    those that this network alone would need: `epochs_a` (A, to the latest epoch that is read), `epochs_imp` (all rounds
    that lead to its mask), `epochs_b` (B likewise) and `epochs_match` (passes over the training split; one without a
    backward pass counts as a third). What other arms share with it is counted for each; a mask from a file costs nothing.
    """
    start = graph.producer(stage.parents["weights"])
    shared = {name: value for name, value in start.settings.plain().items() if name in OF_BOTH_NETWORKS}
    seeds = [stage.labels["seed_a"], stage.labels["seed_b"]]
    return {"pair_key": fingerprint([shared, seeds, stage.parents["mask"]]), **_epochs(stage, graph)}


def _epochs(stage: Stage, graph: Graph) -> dict[str, float]:
    dense, imp, match = dict[tuple[str, str], int](), 0, 0.0
    ahead, seen = list(stage.parents.values()), set[str]()
    while ahead:
        key = ahead.pop()
        if key in seen:
            continue
        seen.add(key)
        parent = graph.producer(key)
        ahead += parent.parents.values()
        if parent.kind == "dense":
            early = {checkpoint: int(epoch) for epoch, checkpoint in parent.checkpoints.items()}
            network = parent.labels["network"], parent.key
            dense[network] = max(dense.get(network, 0), early.get(key, parent.epochs))
        elif parent.kind == "dynamic":
            early = {checkpoint: int(epoch) for epoch, checkpoint in parent.checkpoints.items()}
            imp = max(imp, early.get(key, parent.epochs))
        elif parent.kind == "imp":
            imp += parent.epochs
        elif isinstance(parent.settings, MatchSettings):
            match += _match_epochs(parent.settings, len(parent.parents))
    of_a, of_b = (sum(epochs for (name, _), epochs in dense.items() if name == network) for network in "AB")
    return {"epochs_a": of_a, "epochs_imp": imp, "epochs_b": of_b, "epochs_match": match}


def _match_epochs(settings: MatchSettings, networks: int) -> float:
    """Passes over the training split: those of a learned match, or a forward pass of each of so many networks."""
    if settings.samples is None:
        return 0.0  # from weights alone, or from nothing
    share = settings.samples / settings.data.num_train
    return float(share * (settings.own["epochs"] if settings.method == "learned" else networks * FORWARD))
