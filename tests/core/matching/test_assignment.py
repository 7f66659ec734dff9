"""Assignments of units within units are exact: the best of all permutations that there are."""

import itertools

import numpy as np
import pytest
import torch

from raylth.core.matching.assignment import assign_nested, trees
from raylth.core.permutation import Group, Permutation, PermutationSpec


def spec_of(**groups):
    """A spec of groups alone: name -> (size, within)."""
    return PermutationSpec({name: Group(name, size, (), None, within) for name, (size, within) in groups.items()}, {})


def flat_permutations(outer, inner):
    """All permutations of `outer` blocks of `inner` units that keep the blocks together, as flat indices."""
    orders = list(itertools.permutations(range(inner)))
    for blocks in itertools.permutations(range(outer)):
        for inside in itertools.product(orders, repeat=outer):
            flat = [block * inner + unit for block, order in zip(blocks, inside, strict=True) for unit in order]
            yield np.array(blocks), np.array(flat)


def worth(similarity, perm):
    return similarity[np.arange(len(perm)), perm].sum()


@pytest.mark.parametrize("seed", range(4))
def test_heads_and_their_units_are_the_best_of_all(seed):
    """Three heads of three units that q and k share, and of three others that v has."""
    spec = spec_of(heads=(3, ()), qk=(9, ("heads",)), v=(9, ("heads",)))
    draw = np.random.default_rng(seed)
    qk, v = draw.normal(size=(2, 9, 9))
    best = -np.inf
    for blocks, first in flat_permutations(3, 3):
        inside = [
            max(
                worth(v[3 * row : 3 * row + 3, 3 * block : 3 * block + 3], np.array(order))
                for order in itertools.permutations(range(3))
            )
            for row, block in enumerate(blocks)
        ]
        best = max(best, worth(qk, first) + sum(inside))
    perms, values = assign_nested(spec, trees(spec)["heads"], {"qk": qk, "v": v})
    Permutation(spec, perms)  # units move with their heads
    assert values["qk"] + values["v"] == pytest.approx(best)
    assert values["qk"] == pytest.approx(worth(qk, perms["qk"].numpy()))


@pytest.mark.parametrize("seed", range(4))
def test_heads_that_share_a_key_are_compared_unit_by_unit_as_the_keys_units_are_assigned(seed):
    """Two keys of two units, each with two heads whose entries are head by head in the order of the key's units."""
    spec = spec_of(keys=(2, ()), heads=(4, ("keys",)), units=(4, ("keys",)))
    draw = np.random.default_rng(seed)
    units, entries = draw.normal(size=(4, 4)), draw.normal(size=(8, 8))
    best = {}
    for blocks, flat in flat_permutations(2, 2):
        inside = []
        for row, block in enumerate(blocks):
            part = units[2 * row : 2 * row + 2, 2 * block : 2 * block + 2]
            order = max(itertools.permutations(range(2)), key=lambda each: worth(part, np.array(each)))
            inside.append((worth(part, np.array(order)), order))
        total = sum(value for value, _ in inside)
        for head, other in enumerate(flat):
            order = inside[head // 2][1]
            total += sum(entries[2 * head + unit, 2 * other + order[unit]] for unit in range(2)) / 2
        best[total] = flat
    perms, values = assign_nested(spec, trees(spec)["keys"], {"units": units, "heads": entries}, {"heads": "units"})
    Permutation(spec, perms)
    assert values["heads"] + values["units"] == pytest.approx(max(best))
    assert perms["heads"].tolist() == best[max(best)].tolist()


def test_what_is_known_of_the_outer_units_themselves_counts():
    spec = spec_of(heads=(3, ()), units=(6, ("heads",)))
    draw = np.random.default_rng(0)
    heads, units = draw.normal(size=(3, 3)), draw.normal(size=(6, 6))
    best = max(worth(heads, blocks) + worth(units, flat) for blocks, flat in flat_permutations(3, 2))
    _, values = assign_nested(spec, ["heads", "units"], {"heads": heads, "units": units})
    assert values["heads"] + values["units"] == pytest.approx(best)


def test_three_levels_are_the_best_of_all():
    """Two blocks of two blocks of two units."""
    spec = spec_of(outer=(2, ()), middle=(4, ("outer",)), units=(8, ("outer", "middle")))
    similarity = np.random.default_rng(1).normal(size=(8, 8))
    best = -np.inf
    for _, middle in flat_permutations(2, 2):
        for flips in itertools.product(((0, 1), (1, 0)), repeat=4):
            flat = np.array([block * 2 + unit for block, flip in zip(middle, flips, strict=True) for unit in flip])
            best = max(best, worth(similarity, flat))
    perms, values = assign_nested(spec, trees(spec)["outer"], {"units": similarity})
    Permutation(spec, perms)
    assert values["units"] == pytest.approx(best)


def test_units_that_leave_their_block_are_refused():
    spec = spec_of(heads=(2, ()), units=(4, ("heads",)))
    with pytest.raises(ValueError, match="group 'units': its units must move with those of 'heads' that they are in"):
        Permutation(spec, {"heads": torch.tensor([0, 1]), "units": torch.tensor([2, 1, 0, 3])})
    moved = Permutation(spec, {"heads": torch.tensor([1, 0]), "units": torch.tensor([3, 2, 0, 1])})
    assert torch.equal(moved.compose(moved.inverse()).perms["units"], torch.arange(4))
