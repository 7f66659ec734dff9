"""Ways to find the permutation that aligns network A to network B."""

from raylth.core.matching.activation import MatchResult, match_activations
from raylth.core.matching.cycle_consistent import Universe, match_cycle_consistent
from raylth.core.matching.matcher import MATCHERS, Matcher, MatchInputs, measured_match
from raylth.core.matching.straight_through import match_straight_through
from raylth.core.matching.weight import match_weights

__all__ = [
    "MATCHERS",
    "MatchInputs",
    "MatchResult",
    "Matcher",
    "Universe",
    "match_activations",
    "match_cycle_consistent",
    "match_straight_through",
    "match_weights",
    "measured_match",
]
