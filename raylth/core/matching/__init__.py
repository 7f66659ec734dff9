"""Ways to find the permutation that aligns network A to network B."""

from raylth.core.matching.activation import MatchResult, match_activations
from raylth.core.matching.matcher import MATCHERS, Matcher, MatchInputs
from raylth.core.matching.straight_through import match_straight_through
from raylth.core.matching.weight import match_weights

__all__ = [
    "MATCHERS",
    "MatchInputs",
    "MatchResult",
    "Matcher",
    "match_activations",
    "match_straight_through",
    "match_weights",
]
