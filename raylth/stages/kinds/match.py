"""Stage `match`: theta_A(T), theta_B(i) -> the permutation of A's units that lines up with B's."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from raylth.common.seeding import derive_seed
from raylth.core.matching import MatchResult, match_activations
from raylth.core.matching.straight_through import match_straight_through
from raylth.core.matching.weight import match_weights
from raylth.core.permutation import (
    Permutation,
    PermutationSpec,
    derive_spec,
    identity_permutation,
    random_permutation,
)
from raylth.core.training.schedule import even_batch_size
from raylth.stages.arrays import state_arrays
from raylth.stages.context import Context
from raylth.stages.stage import Artefact, Stage
from raylth.stages.training import load_network, new_network

__all__ = ["METHODS", "PermutationBroken", "match"]

Settings = dict[str, Any]

BATCH_SIZE = 500  # most samples of a forward pass; learned matching normalises by a batch's statistics, activations by none
TOLERANCE = 1e-3  # on |f(pi(A)) - f(A)|, relative to the largest logit


class PermutationBroken(RuntimeError):
    """A permuted network that does not compute the function of the one it came from."""


def match(stage: Stage, context: Context) -> dict[str, Artefact]:
    """Match A to B on training samples, and prove that pi(A) is still A before publishing pi."""
    start = time.perf_counter()
    network_a = load_network(stage.settings, context, stage.parents["a"])
    network_b = load_network(stage.settings, context, stage.parents["b"])
    spec = derive_spec(network_a, context.train.probe(2))
    result = METHODS[stage.settings["method"]](network_a, network_b, spec, stage.settings, context)
    moved = new_network(stage.settings, 0, context.device)
    _prove(network_a, moved, result.permutation, context.train.probe(64))
    metrics = {
        "method": stage.settings["method"],
        "settings": {name: value for name, value in stage.settings.items() if name not in ("model", "data", "method")},
        "objective": result.objective,
        "samples": stage.settings.get("samples"),
        "fixed_share": result.permutation.fixed_share(),
        "seconds": time.perf_counter() - start,
        "epochs": 0,
    }
    return {stage.key: Artefact({"permutation": state_arrays(dict(result.permutation.perms))}, metrics)}


def _activation(a: nn.Module, b: nn.Module, spec: PermutationSpec, settings: Settings, context: Context) -> MatchResult:
    watched = spec.watch(settings["sites"], settings["stream_site"])
    result = match_activations(a, b, watched, (x for x, _ in _batches(settings, context)))
    return MatchResult(Permutation(spec, result.permutation.perms), result.objective)


def _weight(a: nn.Module, b: nn.Module, spec: PermutationSpec, settings: Settings, context: Context) -> MatchResult:
    return match_weights(a.state_dict(), b.state_dict(), spec, settings["seed"])


def _learned(a: nn.Module, b: nn.Module, spec: PermutationSpec, settings: Settings, context: Context) -> MatchResult:
    batches = list(_batches(settings, context))
    return match_straight_through(a, b, spec, batches, settings["seed"], epochs=settings["epochs"], lr=settings["lr"])


def _control(a: nn.Module, b: nn.Module, spec: PermutationSpec, settings: Settings, context: Context) -> MatchResult:
    """The identity or a random permutation; the objective is that of weight matching."""
    is_random = settings["method"] == "random"
    permutation = random_permutation(spec, settings["seed"]) if is_random else identity_permutation(spec)
    return match_weights(a.state_dict(), b.state_dict(), spec, 0, start=permutation, max_sweeps=0)


METHODS = {
    "activation": _activation,
    "weight": _weight,
    "learned": _learned,
    "identity": _control,
    "random": _control,
}


def _batches(settings: Settings, context: Context) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the samples to match on: each once, as it is or as an epoch of training would augment it."""
    samples = context.train.take(settings["samples"])
    size = even_batch_size(len(samples), BATCH_SIZE)
    if "augment" in settings:
        return samples.epoch([derive_seed(settings["seed"], "images")], 0, size, augment=settings["augment"])
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
