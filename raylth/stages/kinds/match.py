"""Stage `match`: theta_A(T), theta_B(i) -> the permutation of A's units that lines up with B's."""

import math
import time
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from raylth.common.seeding import derive_seed
from raylth.core.matching import MATCHERS, MatchInputs, MatchResult
from raylth.core.models import check_code
from raylth.core.modes import in_mode
from raylth.core.permutation import (
    Permutation,
    PermutationSpec,
    identity_permutation,
    unrestricted,
)
from raylth.core.training.schedule import even_batch_size
from raylth.stages.arrays import state_arrays
from raylth.stages.context import Context
from raylth.stages.kind import Finished, Rows, StageKind
from raylth.stages.settings import MatchSettings
from raylth.stages.stage import Artefact, Stage
from raylth.stages.symmetry import symmetry_of
from raylth.stages.training import load_network, new_network

__all__ = ["KIND", "PermutationBroken", "match"]

BATCH_SIZE = 500  # most samples of a forward pass; learned matching normalises by a batch's statistics, activations by none
TOLERANCE = 1e-3  # on |f(pi(A)) - f(A)|, relative to the largest logit


class PermutationBroken(RuntimeError):
    """A permuted network that does not compute the function of the one it came from."""


def match(stage: Stage[MatchSettings], context: Context) -> dict[str, Artefact]:
    """Match A to B on training samples, and prove that pi(A) is still A before publishing pi."""
    start, settings = time.perf_counter(), stage.settings
    network_a = load_network(settings.model, context, stage.parents["a"])
    network_b = load_network(settings.model, context, stage.parents["b"])
    spec = symmetry_of(settings.model, network_a, context, settings.structure)
    matcher, plain = MATCHERS[settings.method], settings.plain()
    check_code("matcher", settings.method, matcher.match, settings.code)
    own = {name: plain[name] for name in matcher.settings}
    inputs = MatchInputs(lambda: _batches(settings, context), settings.seed or 0, own)
    with in_mode(network_a, training=False), in_mode(network_b, training=False):
        result = matcher.match(network_a, network_b, spec, inputs)
    permutation, objective = _checked(f"matcher {settings.method}", result, spec)
    if settings.structure is not None:  # what reads it need not know the structure
        permutation = unrestricted(permutation, symmetry_of(settings.model, network_a, context))
        objective = {name: value for name, value in objective.items() if name in permutation.perms}
    moved = new_network(settings.model, 0, context.device)
    _prove(network_a, moved, permutation, context.train.probe(64))
    metrics = {
        "method": settings.method,
        "settings": {name: value for name, value in plain.items() if name not in ("model", "data", "method")},
        "objective": objective,
        "samples": settings.samples,
        "fixed_share": permutation.fixed_share(),
        "seconds": time.perf_counter() - start,
        "epochs": 0,
    }
    return {stage.key: Artefact({"permutation": state_arrays(dict(permutation.perms))}, metrics)}


def _checked(whose: str, result: object, spec: PermutationSpec) -> tuple[Permutation, dict[str, float]]:
    """Return a matcher's permutation, and how well the units of each group match, as far as it says.

    Raises TypeError or ValueError, one line that begins with `whose`, for what cannot be published.
    """
    if not isinstance(result, MatchResult):
        raise TypeError(f"{whose}: expected a raylth.core.matching.MatchResult, found {type(result).__name__}")
    found: object = result.permutation
    if not isinstance(found, Permutation):
        expected = "a raylth.core.permutation.Permutation"
        raise TypeError(f"{whose}: permutation: expected {expected}, found {type(found).__name__}")
    try:
        permutation = Permutation(spec, found.perms)
    except ValueError as error:  # of another network
        raise ValueError(f"{whose}: permutation: {error}") from error
    given: object = result.objective
    if not isinstance(given, Mapping):
        expected = "a mapping from symmetry groups to numbers"
        raise TypeError(f"{whose}: objective: expected {expected}, found {type(given).__name__}")
    objective = {}
    for group, value in given.items():
        if group not in spec.groups:
            known = ", ".join(spec.groups)
            raise ValueError(f"{whose}: objective: {group!r} is no symmetry group of the network (groups: {known})")
        try:
            objective[group] = float(value)
        except (TypeError, ValueError, RuntimeError):  # the last of a tensor with several entries
            objective[group] = math.nan
        if not math.isfinite(objective[group]):
            raise ValueError(f"{whose}: objective: {group}: expected a finite number, found {value!r:.60}")
    return permutation, objective


def _batches(settings: MatchSettings, context: Context) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the samples to match on: each once, as it is or as an epoch of training would augment it."""
    if settings.samples is None:
        raise ValueError(f"matcher {settings.method}: only one with reads_samples=True may read batches")
    samples = context.train.take(settings.samples)
    size = even_batch_size(len(samples), BATCH_SIZE)
    if settings.augment is not None:
        assert settings.seed is not None
        return samples.epoch([derive_seed(settings.seed, "images")], 0, size, augment=settings.augment)
    return samples.batches(size)


def _prove(network: nn.Module, moved: nn.Module, permutation: Permutation, x: torch.Tensor) -> None:
    """Raise PermutationBroken unless pi(A), written into `moved`, gives A's logits on a batch (B, *in_shape).

    The error names the group that changes the function by itself, and the tensors that it indexes.
    """
    error = _difference(network, moved, permutation, x)
    if error <= TOLERANCE:
        return
    spec, identity = permutation.spec, identity_permutation(permutation.spec)
    alone = {
        name: _difference(network, moved, Permutation(spec, {**identity.perms, name: perm}), x)
        for name, perm in permutation.perms.items()
    }
    worst = max(alone, key=lambda name: alone[name])
    tensors = [name for name, axes in spec.axes.items() if any(axis and worst in axis.groups for axis in axes)]
    raise PermutationBroken(
        f"f(pi(A)) differs from f(A) by {error:.2g} of the largest logit; group {worst!r} alone by {alone[worst]:.2g}; "
        f"it indexes {', '.join(tensors)}. pi was not published"
    )


@torch.inference_mode()
def _difference(network: nn.Module, moved: nn.Module, permutation: Permutation, x: torch.Tensor) -> float:
    """Return the largest change of a logit under the permutation, relative to the largest logit; NaN counts as infinite."""
    moved.load_state_dict(permutation.apply(network.state_dict()))
    expected, found = network.eval()(x), moved.eval()(x)
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    return float("inf") if math.isnan(error) else error


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
