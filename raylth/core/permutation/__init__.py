"""Permutation symmetry: derived from the network, held as data, applied to weights and masks."""

from raylth.core.permutation.derive import UnknownOperation, derive_spec, rule
from raylth.core.permutation.permutation import Permutation, identity_permutation, random_permutation
from raylth.core.permutation.restriction import restrict, unrestricted
from raylth.core.permutation.spec import Axis, Group, Part, PermutationSpec, Site

__all__ = [
    "Axis",
    "Group",
    "Part",
    "Permutation",
    "PermutationSpec",
    "Site",
    "UnknownOperation",
    "derive_spec",
    "identity_permutation",
    "random_permutation",
    "restrict",
    "rule",
    "unrestricted",
]
