"""Matchers: ways of finding the permutation. A sweep file names them in `match.method`.

A custom matcher is another object of `Matcher`, named by its import path (`package.module:object`) or by an entry
point of the group `raylth.matchers`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from raylth.common.registry import Registry, UnknownName
from raylth.core.matching.activation import MatchResult, match_activations
from raylth.core.matching.cycle_consistent import match_cycle_consistent
from raylth.core.matching.straight_through import match_straight_through
from raylth.core.matching.weight import match_weights
from raylth.core.permutation import Permutation, PermutationSpec, identity_permutation, random_permutation

__all__ = ["MATCHERS", "MatchInputs", "Matcher", "matcher_summary", "measured_match"]


@dataclass(frozen=True)
class MatchInputs:
    """What a matcher may read besides the two networks and their symmetry."""

    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]  # (inputs, labels) of the samples, where it `reads_samples`
    seed: int  # for random numbers, where it `needs_seed`
    settings: Mapping[str, Any]  # those that its `settings` name


@dataclass(frozen=True)
class Matcher:
    """One way of finding the permutation of A's units that aligns A to B.

    `match(network_a, network_b, spec, inputs)` returns a `raylth.core.matching.MatchResult`: the permutation, with
    `perm[i]` the unit of A that is placed at position i of B, and how well the units of symmetry groups match, by group, at
    most 1. Both networks are in evaluation mode and must not be changed.

    With `match_many` a sweep matches all of its networks at once instead: `match_many(networks, spec, inputs)` returns, for
    each of three networks or more, the permutation of its units to one order that all have then, the universe. The
    permutation from A to B is that of A, then the inverse of B's, so that all permutations compose exactly.

    Raises TypeError for a field that is none of these.
    """

    match: Callable[[nn.Module, nn.Module, PermutationSpec, MatchInputs], MatchResult]
    summary: str  # by what it matches: for model cards
    reads_samples: bool = False  # whether `match.samples` and `match.augment` matter to it
    needs_seed: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)  # name in `MatchInputs.settings` -> field of `match`
    match_many: Callable[[Sequence[nn.Module], PermutationSpec, MatchInputs], Sequence[Permutation]] | None = None

    def __post_init__(self) -> None:
        if not callable(self.match):
            raise TypeError(f"match: should be a function, found {self.match!r:.60}")
        if self.match_many is not None and not callable(self.match_many):
            raise TypeError(f"match_many: should be a function, found {self.match_many!r:.60}")
        if not isinstance(self.summary, str):
            raise TypeError(f"summary: should be a string, found {self.summary!r:.60}")
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"settings: should be a mapping from names to fields of match, found {self.settings!r:.60}")

    @property
    def function(self) -> Callable[..., object]:
        """What a sweep calls."""
        return self.match_many or self.match


MATCHERS: Registry[Matcher] = Registry("matcher", group="raylth.matchers")


def matcher_summary(name: str) -> str:
    """Return by what a matcher matches, as it says itself; "" where its module is not on this machine."""
    try:
        found = MATCHERS[name]
    except UnknownName:
        return ""
    return found.summary if isinstance(found, Matcher) else ""


def _activation(a: nn.Module, b: nn.Module, spec: PermutationSpec, inputs: MatchInputs) -> MatchResult:
    watched = spec.watch(inputs.settings["sites"], inputs.settings["stream_site"])
    result = match_activations(a, b, watched, (x for x, _ in inputs.batches()))
    return MatchResult(Permutation(spec, result.permutation.perms), result.objective)


def _weight(a: nn.Module, b: nn.Module, spec: PermutationSpec, inputs: MatchInputs) -> MatchResult:
    return match_weights(a.state_dict(), b.state_dict(), spec, inputs.seed)


def _learned(a: nn.Module, b: nn.Module, spec: PermutationSpec, inputs: MatchInputs) -> MatchResult:
    epochs, lr = inputs.settings["epochs"], inputs.settings["lr"]
    return match_straight_through(a, b, spec, list(inputs.batches()), inputs.seed, epochs=epochs, lr=lr)


def _identity(a: nn.Module, b: nn.Module, spec: PermutationSpec, inputs: MatchInputs) -> MatchResult:
    return measured_match(a, b, identity_permutation(spec))


def _random(a: nn.Module, b: nn.Module, spec: PermutationSpec, inputs: MatchInputs) -> MatchResult:
    return measured_match(a, b, random_permutation(spec, inputs.seed))


def _cycle_consistent(networks: Sequence[nn.Module], spec: PermutationSpec, inputs: MatchInputs) -> Sequence[Permutation]:
    return match_cycle_consistent([network.state_dict() for network in networks], spec, inputs.seed).permutations


def _cycle_consistent_pair(a: nn.Module, b: nn.Module, spec: PermutationSpec, inputs: MatchInputs) -> MatchResult:
    to_universe = _cycle_consistent([a, b], spec, inputs)
    return measured_match(a, b, to_universe[1].inverse().compose(to_universe[0]))


def measured_match(a: nn.Module, b: nn.Module, permutation: Permutation) -> MatchResult:
    """Return a permutation with the objective of weight matching."""
    return match_weights(a.state_dict(), b.state_dict(), permutation.spec, 0, start=permutation, max_sweeps=0)


MATCHERS.register("activation")(
    Matcher(
        _activation,
        "by the correlation of activations (paper, section 3.2)",
        reads_samples=True,
        settings={"sites": "sites", "stream_site": "stream_site"},
    )
)
MATCHERS.register("weight")(Matcher(_weight, "by weights (Git Re-Basin, Algorithm 1)", needs_seed=True))
MATCHERS.register("learned")(
    Matcher(
        _learned,
        "learned by a straight-through estimator (Git Re-Basin, Algorithm 3)",
        reads_samples=True,
        needs_seed=True,
        settings={"epochs": "learned_epochs", "lr": "learned_lr"},
    )
)
MATCHERS.register("identity")(Matcher(_identity, "none: every unit stays where it is"))
MATCHERS.register("random")(Matcher(_random, "none: a random permutation", needs_seed=True))
MATCHERS.register("c2m3")(
    Matcher(
        _cycle_consistent_pair,
        "by weights, all networks at once (C2M3, Algorithm 1)",
        needs_seed=True,
        match_many=_cycle_consistent,
    )
)
