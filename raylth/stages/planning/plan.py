"""Turns a sweep's settings into its stages: every network once, in an order in which parents come first."""

from dataclasses import dataclass

from raylth.arms import ARMS
from raylth.config.sweep import SweepConfig
from raylth.stages.kinds import kind_of
from raylth.stages.planning.analyses import measures
from raylth.stages.planning.replicate import Replicate
from raylth.stages.planning.settle import settle
from raylth.stages.planning.shapes import check_stream_site
from raylth.stages.planning.universes import Universes
from raylth.stages.stage import Stage

__all__ = ["MOST_STAGES", "Plan", "make_plan"]

MOST_STAGES = 100_000  # whose plan is in memory, and shown, in seconds


@dataclass(frozen=True)
class Plan:
    """A sweep's settings, with nothing left to the machine, and its stages, parents before children."""

    config: SweepConfig
    stages: tuple[Stage, ...]

    def count(self, kind: str) -> int:
        """Count the stages of one kind."""
        return sum(stage.kind == kind for stage in self.stages)


def make_plan(config: SweepConfig) -> Plan:
    """Plan a sweep; reads the files of `sparse.mask_from`, and settles `precision: auto` for this machine.

    Raises ValueError, which starts with the setting's key path, when a sparsity cannot be reached by whole rounds of
    pruning, when a mask's file does not fit, when `match.stream_site` names what the network does not have, and when an
    analysis needs a network that the sweep does not train; and for a plan of more than 100,000 stages.
    """
    config = settle(config)
    _check_number(config, _fewest(config))
    stages: dict[str, Stage] = {}
    for width in config.model.widths:
        pairs, planned, universes = [], list[Stage](), Universes(config, width)
        for replicate in range(config.seeds.replicates):
            pairs.append(Replicate(config, width, replicate, universes))
            if replicate == 0:  # the networks of the others have the same units
                check_stream_site(pairs[0].model, config.match)
            planned += pairs[-1].stages()
            if not stages and replicate == 0:
                _check_number(config, len({stage.key for stage in planned}))
        for stage in [*planned, *measures(config, pairs), *universes.stages.values()]:
            stages.setdefault(stage.key, stage)
    by_rank = sorted(stages.values(), key=lambda stage: kind_of(stage.kind).rank)  # parents before children
    ahead = _epochs_ahead(by_rank)
    ordered = sorted(by_rank, key=lambda stage: (kind_of(stage.kind).rank, -ahead[stage.key]))
    return Plan(config, tuple(ordered))


def _fewest(config: SweepConfig) -> int:
    """Count some of the stages of one pair, without making them: its arms, or the members of its ensembles."""
    sparse, ensemble = config.sparse, config.measured.ensemble
    matches = len(config.match.method) * len(config.match_epochs)
    arms = sum(matches if ARMS[name].needs_match else 1 for name in sparse.arms)
    members = (ensemble.members or 0) * ensemble.repeats * len(ensemble.sets or ()) if ensemble else 0
    return max(len(sparse.sparsities) * max(1, len(sparse.rewinds) * arms), members // config.seeds.replicates)


def _check_number(config: SweepConfig, each: int) -> None:
    """Raise ValueError for a plan of too many stages, `each` in a pair, which starts with the setting that is longest."""
    pairs = config.seeds.replicates * len(config.model.widths)
    if pairs * each <= MOST_STAGES:
        return
    lengths = {
        "seeds.replicates": config.seeds.replicates,
        "model.widths": len(config.model.widths),
        "sparse.sparsities": len(config.sparse.sparsities),
        "sparse.rewinds": len(config.sparse.rewinds),
        "match.epochs": len(config.match_epochs),
        "imp.prune_fraction": round(1 / config.imp.prune_fraction) if each > MOST_STAGES else 0,
    }
    longest = max(lengths, key=lambda name: lengths[name])
    raise ValueError(
        f"{longest}: {pairs:,} pairs of networks (replicates x widths) with {each:,} stages or more each: "
        f"a plan has at most {MOST_STAGES:,} stages; make several sweeps of it, which may share a store"
    )


def _epochs_ahead(stages: list[Stage]) -> dict[str, int]:
    """Return how many epochs must be trained one after another from each stage on: what most waits for goes first."""
    ahead = {stage.key: stage.epochs for stage in stages}
    producer = {key: stage for stage in stages for key in stage.produces}
    for stage in reversed(stages):  # children before parents
        for parent in {producer[key].key for key in stage.parents.values()}:
            ahead[parent] = max(ahead[parent], producer[parent].epochs + ahead[stage.key])
    return ahead
