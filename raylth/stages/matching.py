"""What the stages that match share: samples to match on, and proof of a permutation before it is published."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from raylth.common.seeding import derive_seed
from raylth.core.matching import MATCHERS, Matcher, MatchInputs, MatchResult
from raylth.core.models import check_code
from raylth.core.permutation import (
    Permutation,
    PermutationSpec,
    identity_permutation,
)
from raylth.core.training.schedule import even_batch_size
from raylth.stages.context import Context
from raylth.stages.settings import MatchSettings

__all__ = ["PermutationBroken", "batches_of", "checked", "checked_permutation", "matcher_of", "prove"]

BATCH_SIZE = 500  # most samples of a forward pass; learned matching normalises by a batch's statistics, activations by none
TOLERANCE = 1e-3  # on |f(pi(A)) - f(A)|, relative to the largest logit


class PermutationBroken(RuntimeError):
    """A permuted network that does not compute the function of the one it came from."""


def matcher_of(settings: MatchSettings, context: Context) -> tuple[Matcher, MatchInputs]:
    """Return the matcher that a stage names, and what it may read; RuntimeError where its code is not what was planned."""
    matcher, plain = MATCHERS[settings.method], settings.plain()
    check_code("matcher", settings.method, matcher.function, settings.code)
    own = {name: plain[name] for name in matcher.settings}
    return matcher, MatchInputs(lambda: batches_of(settings, context), settings.seed or 0, own)


def checked(whose: str, result: object, spec: PermutationSpec) -> tuple[Permutation, dict[str, float]]:
    """Return a matcher's permutation, and how well the units of each group match, as far as it says.

    Raises TypeError or ValueError, one line that begins with `whose`, for what cannot be published.
    """
    if not isinstance(result, MatchResult):
        raise TypeError(f"{whose}: expected a raylth.core.matching.MatchResult, found {type(result).__name__}")
    permutation = checked_permutation(f"{whose}: permutation", result.permutation, spec)
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


def checked_permutation(whose: str, found: object, spec: PermutationSpec) -> Permutation:
    """Return a permutation of the network's symmetry; TypeError or ValueError, one line, for anything else."""
    if not isinstance(found, Permutation):
        raise TypeError(f"{whose}: expected a raylth.core.permutation.Permutation, found {type(found).__name__}")
    try:
        return Permutation(spec, found.perms)
    except ValueError as error:  # of another network
        raise ValueError(f"{whose}: {error}") from error


def batches_of(settings: MatchSettings, context: Context) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the samples to match on: each once, as it is or as an epoch of training would augment it."""
    if settings.samples is None:
        raise ValueError(f"matcher {settings.method}: only one with reads_samples=True may read batches")
    samples = context.train.take(settings.samples)
    size = even_batch_size(len(samples), BATCH_SIZE)
    if settings.augment is not None:
        assert settings.seed is not None
        return samples.epoch([derive_seed(settings.seed, "images")], 0, size, augment=settings.augment)
    return samples.batches(size)


def prove(network: nn.Module, moved: nn.Module, permutation: Permutation, x: torch.Tensor) -> None:
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
