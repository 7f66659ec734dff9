"""Stage `match`: theta_A(T), theta_B(i) -> the permutation of A's units that lines up with B's."""

import time

from torch import nn

from raylth.core.matching import MatchResult, measured_match
from raylth.core.modes import in_mode
from raylth.core.permutation import PermutationSpec, unrestricted
from raylth.stages.arrays import state_arrays
from raylth.stages.context import Context
from raylth.stages.endpoints import load_universe
from raylth.stages.kind import Finished, Rows, StageKind
from raylth.stages.matching import checked, matcher_of, prove
from raylth.stages.settings import MatchSettings
from raylth.stages.stage import Artefact, Stage
from raylth.stages.symmetry import symmetry_of
from raylth.stages.training import load_network, new_network

__all__ = ["KIND", "match"]


def match(stage: Stage[MatchSettings], context: Context) -> dict[str, Artefact]:
    """Match A to B on training samples, and prove that pi(A) is still A before publishing pi."""
    start, settings = time.perf_counter(), stage.settings
    network_a = load_network(settings.model, context, stage.parents["a"])
    network_b = load_network(settings.model, context, stage.parents["b"])
    spec = symmetry_of(settings.model, network_a, context, settings.structure)
    with in_mode(network_a, training=False), in_mode(network_b, training=False):
        result = _found(stage, context, network_a, network_b, spec)
    permutation, objective = checked(f"matcher {settings.method}", result, spec)
    if settings.structure is not None:  # what reads it need not know the structure
        permutation = unrestricted(permutation, symmetry_of(settings.model, network_a, context))
        objective = {name: value for name, value in objective.items() if name in permutation.perms}
    moved = new_network(settings.model, 0, context.device)
    prove(network_a, moved, permutation, context.train.probe(64))
    metrics = {
        "method": settings.method,
        "settings": {name: value for name, value in settings.plain().items() if name not in ("model", "data", "method")},
        "objective": objective,
        "samples": settings.samples,
        "fixed_share": permutation.fixed_share(),
        "seconds": time.perf_counter() - start,
        "epochs": 0,
    }
    return {stage.key: Artefact({"permutation": state_arrays(dict(permutation.perms))}, metrics)}


def _found(stage: Stage[MatchSettings], context: Context, a: nn.Module, b: nn.Module, spec: PermutationSpec) -> MatchResult:
    """Return pi of A and B: through the universe where all networks were matched at once, else what the matcher finds."""
    places = stage.settings.places
    if places is None:
        matcher, inputs = matcher_of(stage.settings, context)
        return matcher.match(a, b, spec, inputs)
    to_universe = load_universe(stage.parents["universe"], spec, context)
    permutation = to_universe[places["b"]].inverse().compose(to_universe[places["a"]])
    return measured_match(a, b, permutation)


def _rows(finished: Finished) -> Rows:
    """Return a row for each symmetry group."""
    labels, metrics = finished.stage.labels, finished.metrics
    objective = metrics.get("objective") or {}  # of some groups only, if its matcher says no more
    return {
        "permutations": [
            {
                "unit_group": group,
                "carries_masks": labels["carries_masks"],
                "correlation": objective.get(group),
                "fixed_share": fixed_share,
                "samples": metrics.get("samples"),
            }
            for group, fixed_share in metrics.get("fixed_share", {}).items()
        ]
    }


KIND = StageKind(
    name="match",
    settings=MatchSettings,
    rank=40,
    compute=match,
    rows=_rows,
    num_bytes=lambda stage, network: 8 * network.units,
    feeds_arms=True,
)
