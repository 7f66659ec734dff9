"""Masks with patterns: what is pruned, how many weights stay, and what a violation is."""

import itertools
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylth.core.masks import num_alive
from raylth.core.pruning import (
    Structure,
    keeps,
    landing_alive,
    nearest_alive,
    prune_global_magnitude,
    prune_structured,
    shuffle_structured,
)

TWO_OF_FOUR = Structure("nm", n=2, m=4)
BLOCKS = Structure("block", rows=2, columns=3)
FAN_IN = Structure("fan_in")
PATTERNS = [TWO_OF_FOUR, Structure("nm", n=1, m=2), BLOCKS, Structure("block", rows=1, columns=4), FAN_IN]


def full(weights):
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def drawn(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"w{n}": torch.randn(shape, generator=generator) for n, shape in enumerate(shapes)}


def pruned(weights, structure, sparsity):
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    wanted = nearest_alive(structure, shapes, round((1 - sparsity) * sum(map(prod, shapes.values()))))
    return prune_structured(weights, full(weights), structure, num_alive=wanted)


def test_two_of_four_are_the_largest_of_consecutive_inputs():
    weight = torch.tensor([[1.0, -4, 3, 2, 0, 0, 0, 0], [9.0, 8, 7, 6, -1, 1, -1, 1]])
    mask = prune_structured({"w": weight}, full({"w": weight}), TWO_OF_FOUR, num_alive=8)
    assert mask["w"].int().tolist() == [[0, 1, 1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 1, 1]], "of equal ones the first go"


def test_groups_of_a_convolution_are_input_channels_at_one_position_of_the_kernel():
    weights = drawn([(3, 8, 2, 3)])
    mask = pruned(weights, TWO_OF_FOUR, 0.5)["w0"]
    for out, group, row, column in itertools.product(range(3), range(2), range(2), range(3)):
        group = slice(4 * group, 4 * group + 4)
        kept = weights["w0"][out, group, row, column].abs().topk(2).indices
        assert set(mask[out, group, row, column].nonzero().flatten().tolist()) == set(kept.tolist())


def test_blocks_are_whole_kernels_of_outputs_times_inputs():
    weights = drawn([(4, 6, 2, 2)])
    mask = pruned(weights, BLOCKS, 0.5)["w0"]
    sums = {
        (row, column): float(weights["w0"][2 * row : 2 * row + 2, 3 * column : 3 * column + 3].abs().sum())
        for row in range(2)
        for column in range(2)
    }
    kept = sorted(sums, key=sums.__getitem__)[2:]
    expected = torch.zeros(4, 6, 2, 2, dtype=torch.bool)
    for row, column in kept:
        expected[2 * row : 2 * row + 2, 3 * column : 3 * column + 3] = True
    assert torch.equal(mask, expected)


def test_every_output_keeps_as_many_of_its_largest_weights():
    weights = drawn([(5, 4, 3, 3)])
    mask = pruned(weights, FAN_IN, 0.75)["w0"]
    for out in range(5):
        kept = weights["w0"][out].abs().flatten().topk(9).indices
        assert set(mask[out].flatten().nonzero().flatten().tolist()) == set(kept.tolist())


def test_layers_that_a_pattern_does_not_divide_are_pruned_weight_by_weight():
    """To the same sparsity: under 2:4 exactly half of all weights are gone."""
    weights = drawn([(5, 3, 3, 3), (4, 8), (7, 5)])
    mask = pruned(weights, TWO_OF_FOUR, 0.5)
    assert num_alive(mask) == 135 + 32 + 35 - round(0.5 * (135 + 32 + 35))
    assert mask["w1"].view(4, 2, 4).sum(2).unique().tolist() == [2]
    rest = [name for name in weights if name != "w1"]
    together = prune_global_magnitude(
        weights, full({name: weights[name] for name in rest}), count=135 + 35 - num_alive({name: mask[name] for name in rest})
    )
    assert all(torch.equal(mask[name], together[name]) for name in rest)
    assert not TWO_OF_FOUR.fits((5, 3, 3, 3))
    assert pruned(weights, BLOCKS, 0.5)["w2"].sum() == 18, "35 weights, each by itself"


def reachable(shapes, structure):
    """All numbers of alive weights, by the order in which parts go, written out."""
    events = []
    for place, shape in enumerate(shapes):
        if not structure.fits(shape):
            count = most = prod(shape)
            size = 1
        elif structure.pattern == "fan_in":
            count, size = prod(shape[1:]), shape[0]
            most = count - 1
        else:
            size = structure.rows * structure.columns * prod(shape[2:])
            count = most = prod(shape) // size
        events += [((2 * part - 1) / (2 * count), place, size) for part in range(1, most + 1)]
    alive = [sum(map(prod, shapes))]
    for _, _, size in sorted(events):
        alive.append(alive[-1] - size)
    return alive


shapes_of_layers = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 6), st.integers(2, 9)),
        st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 2), st.integers(1, 2)),
    ),
    min_size=1,
    max_size=4,
)


@given(
    shapes=shapes_of_layers,
    structure=st.sampled_from([BLOCKS, Structure("block", rows=1, columns=4), FAN_IN]),
    share=st.floats(0, 1),
    seed=st.integers(0, 100),
    ties=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_counts_are_the_nearest_that_a_pattern_has_and_are_kept_exactly(shapes, structure, share, seed, ties):
    weights = drawn(shapes, seed)
    if ties:
        weights = {name: weight.round() for name, weight in weights.items()}
    numbers = reachable(shapes, structure)
    wanted = round(share * numbers[0])
    named = dict(zip(weights, shapes, strict=True))
    found = nearest_alive(structure, named, wanted)
    assert abs(found - wanted) == min(abs(number - wanted) for number in numbers)
    mask = prune_structured(weights, full(weights), structure, num_alive=found)
    assert num_alive(mask) == found
    assert keeps(mask, structure) is None


@given(
    shapes=shapes_of_layers,
    structure=st.sampled_from([BLOCKS, FAN_IN]),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_a_sparser_mask_is_part_of_a_denser_one_and_can_be_reached_from_it(shapes, structure, shares):
    weights = drawn(shapes)
    named = dict(zip(weights, shapes, strict=True))
    total = sum(map(prod, shapes))
    mask = full(weights)
    for share in sorted(shares, reverse=True):
        wanted = nearest_alive(structure, named, round(share * total))
        at_once = prune_structured(weights, full(weights), structure, num_alive=wanted)
        step = prune_structured(weights, mask, structure, num_alive=wanted)
        assert all(bool((step[name] <= mask[name]).all()) for name in mask)
        assert all(torch.equal(step[name], at_once[name]) for name in mask), "the weights are the same"
        mask = step


@pytest.mark.parametrize("structure", PATTERNS, ids=str)
def test_a_violation_is_named(structure):
    weights = drawn([(4, 12, 2, 2), (6, 12)])
    mask = pruned(weights, structure, 0.5)
    assert keeps(mask, structure) is None
    place = mask["w1"].nonzero()[0]
    mask["w1"][tuple(place)] = False
    message = keeps(mask, structure)
    assert message.startswith("w1: ")
    assert str(structure) in message


def test_a_violation_says_what_was_found_and_what_is_required():
    mask = {"w": torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0]]) > 0}
    assert keeps(mask, TWO_OF_FOUR) == "w: 4 consecutive inputs number 1 keeps 3 of 4 weights, 2:4 requires 2"


@pytest.mark.parametrize("structure", PATTERNS, ids=str)
def test_shuffling_keeps_the_pattern_and_the_number_of_weights_of_each_layer(structure):
    weights = drawn([(4, 12, 2, 2), (6, 12), (5, 7)])
    mask = pruned(weights, structure, 0.5)
    moved = shuffle_structured(mask, structure, 3)
    assert keeps(moved, structure) is None
    assert {name: int(kept.sum()) for name, kept in moved.items()} == {name: int(kept.sum()) for name, kept in mask.items()}
    assert all(not torch.equal(moved[name], mask[name]) for name in mask)
    again = shuffle_structured(mask, structure, 3)
    assert all(torch.equal(moved[name], again[name]) for name in mask)


def test_what_no_pattern_has_is_refused_with_the_nearest():
    shapes = {"a": (8, 8), "b": (4, 8)}
    with pytest.raises(ValueError, match=r"^0.9 is no sparsity that 2:4 can have here: the nearest are 0.5000$"):
        landing_alive(TWO_OF_FOUR, shapes, 0.9)
    assert landing_alive(TWO_OF_FOUR, shapes, 0.503) == 48, "near enough"
    with pytest.raises(ValueError, match=r"^0.51 is no sparsity that constant fan-in .* 0.5000 and 0.5833$"):
        landing_alive(FAN_IN, shapes, 0.51)
    weights = drawn(shapes.values())
    with pytest.raises(ValueError, match="47 weights cannot stay alive; the nearest are 48"):
        prune_structured(weights, full(weights), FAN_IN, num_alive=47)
    mask = full(weights)
    mask["w0"][0, :3] = False
    with pytest.raises(ValueError, match="already lost"):
        prune_structured(weights, mask, TWO_OF_FOUR, num_alive=48)
    weights["w1"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        prune_structured(weights, full(weights), FAN_IN, num_alive=48)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"pattern": "n:m"}, "pattern: 'n:m' is unknown"),
        ({"pattern": "nm", "n": 2}, "m: the pattern nm needs it"),
        ({"pattern": "nm", "n": 4, "m": 4}, "n: 4 of 4 prunes nothing"),
        ({"pattern": "fan_in", "n": 2}, "n: the pattern fan_in has none"),
        ({"pattern": "block", "rows": 0, "columns": 4}, "rows: should be a whole number from 1"),
    ],
)
def test_patterns_that_are_none_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Structure(**sizes)
