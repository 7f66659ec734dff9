"""Turns a sweep's settings into its stages: every network once, in an order in which parents come first."""

from dataclasses import dataclass, replace

from raylth.config import SweepConfig
from raylth.seeding import derive_seed
from raylth.stages.pair import Pair
from raylth.stages.stage import Stage, stage_key

__all__ = ["Plan", "make_plan"]

KIND_ORDER = ("dense", "imp", "mask", "match", "sparse", "connect", "ensemble")  # of scheduling: what others wait for first


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
    pruning, when a mask's file does not fit, and when `match.stream_site` names what the network does not have.
    """
    stages: dict[str, Stage] = {}
    for width in config.model.widths:
        pairs = [Pair(config, width, replicate) for replicate in range(config.seeds.replicates)]
        planned = [stage for pair in pairs for stage in pair.stages()]
        for stage in [*planned, *_ensembles(config, pairs)]:
            stages.setdefault(stage.key, stage)
    ordered = sorted(stages.values(), key=lambda stage: KIND_ORDER.index(stage.kind))
    return Plan(config, tuple(ordered))


def _ensembles(config: SweepConfig, pairs: list[Pair]) -> list[Stage]:
    """Plan the sets of Table 1 at one width, with the networks that they need beyond the cells."""
    asked = config.ensemble
    if asked is None or asked.sets is None or asked.members is None:
        return []
    first, stages = pairs[0], []
    for name in asked.sets:
        keys, needed = _members(name, config, pairs[: asked.members])
        parents = {f"member {number}": key for number, key in enumerate(keys)}
        settings = {"model": first.model, "data": {**first.train_data, **first.test_data}}
        labels = {
            "width": first.labels["width"],
            "arm": name,
            "sparsity": asked.sparsity,
            "rewind_epoch": None if name == "imp" else asked.rewind,  # imp: A itself, pruned
        }
        stages += [*needed, Stage("ensemble", stage_key("ensemble", settings, parents), settings, parents, labels)]
    return stages


def _members(name: str, config: SweepConfig, pairs: list[Pair]) -> tuple[list[str], list[Stage]]:
    """Return the keys of the members of one of Table 1's sets, and the stages that they need beyond the cells.

    imp: the pruned A of each pair. lth: A's mask and early weights of the first pair, each member with an order of batches of
    its own. permuted, naive: A's mask of the first pair on the B of each.
    """
    asked, first, total = config.ensemble, pairs[0], config.dense.epochs
    assert asked is not None
    assert asked.sparsity is not None
    assert asked.rewind is not None
    if name == "imp":
        return [pair.masks[asked.sparsity] for pair in pairs], []
    mask, cell = first.masks[asked.sparsity], (asked.sparsity, asked.rewind)
    keys, needed = [], []
    for number, pair in enumerate(pairs):
        labels = {"replicate": 0, "seed_a": first.seeds["A"], "member": number or None}
        if name == "lth":
            parents = {"weights": first.theta["A", asked.rewind], "mask": mask}
            seed = derive_seed(config.seeds.base, "replicate", 0, "sparse data", "member", number) % 2**32
            network = first.sparse(name, parents, *cell, None, order_seed=seed if number else None, labels=labels)
        else:
            parents = {"weights": pair.theta["B", asked.rewind], "mask": mask}
            match = None
            if name == "permuted":
                match = pair.match(config.match.method[0], first.theta["A", total], pair.theta["B", total], total)
                match = replace(match, labels={**match.labels, **labels})
                needed.append(match)
                parents["permutation"] = match.key
            network = pair.sparse(name, parents, *cell, match, labels=labels)
        keys.append(network.key)
        needed.append(network)
    return keys, needed
