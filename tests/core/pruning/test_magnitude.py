import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylth.core.masks import num_alive
from raylth.core.pruning import num_landing_alive, prune_global_magnitude, trunk_counts


def _mask(weights):
    return {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("amount", "expected_a", "expected_b"),
    [
        ({"count": 0}, [1, 1, 1], [1, 1]),
        ({"count": 1}, [1, 1, 0], [1, 1]),  # the smallest of all tensors
        ({"count": 2}, [0, 1, 0], [1, 1]),  # a tie of |1| at a[0] and b[0]: the first by flat index goes first
        ({"count": 3}, [0, 1, 0], [0, 1]),
        ({"count": 5}, [0, 0, 0], [0, 0]),
        ({"fraction": 0.4}, [0, 1, 0], [1, 1]),  # round(0.4 * 5) = 2
        ({"fraction": 0.5}, [0, 1, 0], [1, 1]),  # round(2.5) = 2: halves go to the even number
    ],
)
def test_hand_made_table(amount, expected_a, expected_b):
    weights = {"a": torch.tensor([-1.0, 3.0, 0.5]), "b": torch.tensor([[1.0], [-4.0]])}
    pruned = prune_global_magnitude(weights, _mask(weights), **amount)
    assert pruned["a"].int().tolist() == expected_a
    assert pruned["b"].flatten().int().tolist() == expected_b


def test_only_alive_weights_count():
    weights = {"a": torch.tensor([0.0, 0.1, 0.2, 0.3])}
    mask = {"a": torch.tensor([False, True, True, True])}
    pruned = prune_global_magnitude(weights, mask, count=1)
    assert pruned["a"].tolist() == [False, False, True, True]
    assert mask["a"].tolist() == [False, True, True, True], "the argument was changed"


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    fraction=st.floats(0, 1),
    values=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=200)
def test_counts_are_exact_whatever_the_ties(sizes, fraction, values, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = {f"w{i}": torch.randint(-values, values + 1, (n,), generator=generator).float() for i, n in enumerate(sizes)}
    mask = {name: torch.rand(tensor.shape, generator=generator) < 0.7 for name, tensor in weights.items()}
    pruned = prune_global_magnitude(weights, mask, fraction=fraction)
    alive = num_alive(mask)
    assert num_alive(pruned) == alive - round(fraction * alive)
    gone = torch.cat([weights[n].abs()[mask[n] & ~pruned[n]] for n in weights])
    kept = torch.cat([weights[n].abs()[pruned[n]] for n in weights])
    assert all(bool((pruned[n] <= mask[n]).all()) for n in weights)
    assert gone.numel() == 0 or kept.numel() == 0 or gone.max() <= kept.min()


@pytest.mark.parametrize(
    ("weights", "mask", "amount", "message"),
    [
        ({"a": torch.ones(3)}, {"a": torch.ones(3, dtype=torch.bool)}, {"count": 4}, "3 are alive"),
        ({"a": torch.ones(3)}, {"a": torch.ones(3, dtype=torch.bool)}, {"fraction": 1.5}, "from 0 to 1"),
        (
            {"a": torch.ones(100)},
            {"a": torch.ones(100) > 0},
            {"fraction": 90},
            "not 90; to prune that many weights, give count",
        ),
        (
            {"a": torch.ones(3)},
            {"a": torch.ones(3) > 0},
            {"count": 0.9},
            "not 0.9; to prune a share of the weights, give fraction",
        ),
        ({"a": torch.ones(3)}, {"a": torch.ones(3) > 0}, {"count": 1.0}, "not 1.0; to prune a share"),
        ({"a": torch.ones(3)}, {"a": torch.ones(3) > 0}, {"count": True}, "not True"),
        ({"a": torch.ones(3)}, {"a": torch.ones(3) > 0}, {"fraction": True}, "not True"),
        ({"a": torch.ones(3)}, {"a": torch.ones(3) > 0}, {"fraction": "0.5"}, "not '0.5'"),
        ({"a": torch.ones(3)}, {"a": torch.ones(3) > 0}, {"fraction": float("nan")}, "not nan"),
        ({"a": torch.ones(3)}, {"a": torch.ones(3) > 0}, {"fraction": -0.1}, "not -0.1"),
        ({"a": torch.ones(3)}, {"a": torch.ones(3) > 0}, {"count": -1}, "cannot prune -1"),
        ({"a": torch.ones(3)}, {"a": torch.ones(3) > 0}, {}, "give either fraction"),
        ({"a": torch.ones(3)}, {"a": torch.ones(3) > 0}, {"count": 1, "fraction": 0.5}, "give either fraction"),
        ({"a": torch.ones(3)}, {"a": torch.ones(2, dtype=torch.bool)}, {"count": 1}, "same shape"),
        ({"a": torch.ones(3)}, {"b": torch.ones(3, dtype=torch.bool)}, {"count": 1}, "'b'"),
        ({"a": torch.tensor([float("nan"), 1.0])}, {"a": torch.ones(2, dtype=torch.bool)}, {"count": 1}, "a holds NaN"),
    ],
)
def test_bad_input_is_named(weights, mask, amount, message):
    with pytest.raises(ValueError, match=message):
        prune_global_magnitude(weights, mask, **amount)


def test_trunk_and_landings_hit_each_sparsity_exactly():
    total = 268_336  # prunable weights of a ResNet-20
    for sparsity in (0.8, 0.9, 0.95, 0.97):
        target = num_landing_alive(total, sparsity)
        counts = trunk_counts(total, 0.2, target)
        assert all(after == before - round(0.2 * before) for before, after in itertools.pairwise(counts))
        assert counts[-1] >= target
        assert counts[-1] - round(0.2 * counts[-1]) < target, "one more full round would have fitted"
    assert len(trunk_counts(total, 0.2, num_landing_alive(total, 0.97))) - 1 == 15  # 0.8 ** 15 = 0.035


def test_a_trunk_that_lands_by_itself_needs_no_landing():
    assert trunk_counts(100, 0.2, 64) == [100, 80, 64]


def test_a_trunk_that_cannot_move_says_so():
    with pytest.raises(ValueError, match="prunes none of 2 weights"):
        trunk_counts(2, 0.2, 1)


def test_the_meaning_of_an_amount_must_be_given():
    weights = {"a": torch.arange(100.0)}
    with pytest.raises(TypeError, match="positional"):
        prune_global_magnitude(weights, _mask(weights), 90)
    assert num_alive(prune_global_magnitude(weights, _mask(weights), count=90)) == 10
    assert num_alive(prune_global_magnitude(weights, _mask(weights), fraction=0.25)) == 75
    assert num_alive(prune_global_magnitude(weights, _mask(weights), fraction=1)) == 0, "all of them"
    assert num_alive(prune_global_magnitude(weights, _mask(weights), count=1)) == 99
    assert num_alive(prune_global_magnitude(weights, _mask(weights), fraction=np.float32(0.5), count=None)) == 50
    assert num_alive(prune_global_magnitude(weights, _mask(weights), count=np.int64(7))) == 93
