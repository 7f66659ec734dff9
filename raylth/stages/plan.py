"""Turns a sweep's settings into its stages: every network once, in an order in which parents come first."""

from dataclasses import dataclass

from raylth.config import SweepConfig
from raylth.stages.measures import measures
from raylth.stages.pair import Pair
from raylth.stages.stage import Stage

__all__ = ["Plan", "make_plan"]

KIND_ORDER = (
    "dense",
    "imp",
    "mask",
    "match",
    "sparse",
    "connect",
    "plane",
    "overlap",
    "ensemble",
)  # of scheduling: what others wait for first


@dataclass(frozen=True)
class Plan:
    """A sweep's settings and its stages, parents before children."""

    config: SweepConfig
    stages: tuple[Stage, ...]

    def count(self, kind: str) -> int:
        """Count the stages of one kind."""
        return sum(stage.kind == kind for stage in self.stages)


def make_plan(config: SweepConfig) -> Plan:
    """Plan a sweep; reads the files of `sparse.mask_from`.

    Raises ValueError, which starts with the setting's key path, when a sparsity cannot be reached by whole rounds of
    pruning, when a mask's file does not fit, when `match.stream_site` names what the network does not have, and when an
    analysis needs a network that the sweep does not make.
    """
    stages: dict[str, Stage] = {}
    for width in config.model.widths:
        pairs = [Pair(config, width, replicate) for replicate in range(config.seeds.replicates)]
        planned = [stage for pair in pairs for stage in pair.stages()]
        for stage in [*planned, *measures(config, pairs)]:
            stages.setdefault(stage.key, stage)
    ahead = _epochs_ahead(list(stages.values()))
    ordered = sorted(stages.values(), key=lambda stage: (KIND_ORDER.index(stage.kind), -ahead[stage.key]))
    return Plan(config, tuple(ordered))


def _epochs_ahead(stages: list[Stage]) -> dict[str, int]:
    """Return how many epochs must be trained one after another from each stage on: what most waits for goes first."""
    ahead = {stage.key: stage.epochs for stage in stages}
    producer = {key: stage for stage in stages for key in stage.produces}
    for stage in reversed(stages):  # children before parents
        for parent in {producer[key].key for key in stage.parents.values()}:
            ahead[parent] = max(ahead[parent], producer[parent].epochs + ahead[stage.key])
    return ahead
