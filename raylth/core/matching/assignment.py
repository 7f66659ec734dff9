"""Solves assignments of units: each group's alone, and those of units within units from the inside out."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from raylth.core.permutation.spec import PermutationSpec

__all__ = ["assign", "assign_nested", "trees"]


def assign(similarity: np.ndarray) -> tuple[Tensor, float]:
    """Solve the assignment: returns perm (C,), where perm[i] is A's unit for position i of B, and the mean similarity."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return torch.from_numpy(columns.astype(np.int64)), float(similarity[rows, columns].mean())


def trees(spec: PermutationSpec) -> dict[str, list[str]]:
    """Return, for each group that is within none, itself and those within it, the outer ones first."""
    found: dict[str, list[str]] = {name: [name] for name, group in spec.groups.items() if not group.within}
    for name in sorted(spec.groups, key=lambda each: len(spec.groups[each].within)):
        if within := spec.groups[name].within:
            found[within[0]].append(name)
    return found


def assign_nested(
    spec: PermutationSpec,
    members: Sequence[str],
    similarity: Mapping[str, np.ndarray],
    beside: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Solve the assignments of groups that are within one another, exactly.

    `members` are one tree of groups, the outer ones first; `similarity` has, for each of them that has one, the similarity of
    B's units (rows) with A's (columns), (size, size). The units of an inner group are assigned for every pair of units that
    they may be within, and the sums of that decide about the outer one. The sum over all groups is the largest that any
    permutation of the tree has. Returns the permutations, and the sum of what was matched, per group.

    `beside` names, for a group, another one within the same units whose order its own entries have, too, as query heads that
    share a key have the order of the key's units: its similarity is that of entries, (size * k, size * k), and each unit's is
    the mean over its k entries as the other group's assignment pairs them, which is solved first.
    """
    beside = beside or {}
    similarity = dict(similarity)
    tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # value (outer, outer), assignment (outer, outer, inner)
    for name in sorted(members, key=lambda each: (-len(spec.groups[each].within), each in beside)):
        size = spec.groups[name].size
        if name in beside:
            similarity[name] = _paired(similarity[name], size, tables[beside[name]][1])
        own = similarity.get(name, np.zeros((size, size)))
        inside = [each for each in members if spec.groups[each].within[-1:] == (name,)]
        tables[name] = _table(own + sum(tables[each][0] for each in inside), spec.inner_size(name))
    perms: dict[str, Tensor] = {}
    values: dict[str, float] = {}
    for name in members:
        within, inner = spec.groups[name].within, spec.inner_size(name)
        outer = perms[within[-1]].numpy() if within else np.zeros(1, dtype=np.int64)
        chosen = tables[name][1][np.arange(len(outer)), outer]  # (outer, inner)
        perm = (outer[:, None] * inner + chosen).ravel()
        perms[name] = torch.from_numpy(perm)
        values[name] = float(similarity[name][np.arange(len(perm)), perm].sum()) if name in similarity else 0.0
    return perms, values


def _paired(entries: np.ndarray, size: int, chosen: np.ndarray) -> np.ndarray:
    """Average the similarity of units' entries, (size * k, size * k), as assignments (outer, outer, inner) pair these."""
    outer, inner = chosen.shape[0], chosen.shape[2]
    whole = entries.reshape(outer, size // outer, inner, -1, outer, size // outer, inner, entries.shape[0] // (size * inner))
    found = np.zeros((outer, size // outer, outer, size // outer))
    for one in range(outer):
        for other in range(outer):
            pairs = whole[one, :, :, :, other][:, np.arange(inner), :, :, chosen[one, other]]
            found[one, :, other] = np.einsum("uarbr->ab", pairs) / (inner * pairs.shape[2])
    return found.reshape(size, size)


def _table(similarity: np.ndarray, inner: int) -> tuple[np.ndarray, np.ndarray]:
    """Assign within every pair of blocks of `inner` units; returns what that is worth, and the assignments."""
    from scipy.optimize import linear_sum_assignment

    count = len(similarity) // inner
    blocks = similarity.reshape(count, inner, count, inner)
    values, chosen = np.zeros((count, count)), np.zeros((count, count, inner), dtype=np.int64)
    for one in range(count):
        for other in range(count):
            block = blocks[one, :, other]
            columns = linear_sum_assignment(block, maximize=True)[1]
            chosen[one, other] = columns
            values[one, other] = block[np.arange(inner), columns].sum()
    return values, chosen
