"""Stage `universe`: all dense networks of a width -> a permutation of each to one order of units, found for all at once."""

import time
from contextlib import ExitStack

from raylth.core.matching.cycle_consistent import mean_cosine
from raylth.core.modes import in_mode
from raylth.stages.context import Context
from raylth.stages.endpoints import universe_arrays
from raylth.stages.kind import Finished, Rows, StageKind
from raylth.stages.matching import checked_permutation, matcher_of, prove
from raylth.stages.settings import MatchSettings
from raylth.stages.stage import Artefact, Stage
from raylth.stages.symmetry import symmetry_of
from raylth.stages.training import load_network, new_network

__all__ = ["KIND", "universe"]


def universe(stage: Stage[MatchSettings], context: Context) -> dict[str, Artefact]:
    """Match the networks 0, 1, ... at once, and prove that each, moved, is the same function before it is published."""
    start, settings = time.perf_counter(), stage.settings
    keys = [stage.parents[str(number)] for number in range(len(stage.parents))]
    networks = [load_network(settings.model, context, key) for key in keys]
    spec = symmetry_of(settings.model, networks[0], context)
    matcher, inputs = matcher_of(settings, context)
    assert matcher.match_many is not None
    with ExitStack() as modes:
        for network in networks:
            modes.enter_context(in_mode(network, training=False))
        found = list(matcher.match_many(networks, spec, inputs))
    whose = f"matcher {settings.method}"
    if len(found) != len(networks):
        raise ValueError(f"{whose}: expected a permutation for each of {len(networks)} networks, found {len(found)}")
    permutations = [checked_permutation(f"{whose}: network {number}", each, spec) for number, each in enumerate(found)]
    moved, probe = new_network(settings.model, 0, context.device), context.train.probe(64)
    for network, permutation in zip(networks, permutations, strict=True):
        prove(network, moved, permutation, probe)
    states = [each.apply(network.state_dict()) for each, network in zip(permutations, networks, strict=True)]
    metrics = {
        "method": settings.method,
        "networks": len(networks),
        "cosine": mean_cosine(states, spec),
        "samples": settings.samples,
        "seconds": time.perf_counter() - start,
        "epochs": 0,
    }
    return {stage.key: Artefact({"permutations": universe_arrays(permutations)}, metrics)}


def _rows(finished: Finished) -> Rows:
    """Return none: the matches of pairs have theirs."""
    return {}


KIND = StageKind(
    name="universe",
    settings=MatchSettings,
    rank=38,
    compute=universe,
    rows=_rows,
    num_bytes=lambda stage, network: 8 * network.units * len(stage.parents),
    feeds_arms=True,
)
