"""Ensemble metrics against tables of probabilities made by hand, and against SciPy."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from raylth.core.ensemble import FLOOR, calibration_error, ensemble_metrics

LABELS = torch.tensor([0, 1, 1, 0])


def random_members(seed, members=3, samples=40, classes=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(members, samples, classes, generator=generator), dim=2)


def test_identical_members_do_not_differ():
    member = random_members(0, members=1)
    found = ensemble_metrics(member.expand(4, -1, -1), torch.zeros(40, dtype=torch.long))
    assert (found.disagreement, found.kl, found.js) == (0.0, 0.0, 0.0)
    assert found.ensemble_accuracy == found.mean_accuracy
    assert found.ensemble_nll == pytest.approx(found.mean_nll)


def test_two_one_hots_that_never_agree():
    a = torch.eye(2)[LABELS]
    found = ensemble_metrics(torch.stack([a, 1 - a]), LABELS)
    assert found.disagreement == 1.0
    assert found.kl == pytest.approx(-math.log(FLOOR)), "finite by the stated rule"
    assert found.js == pytest.approx(math.log(2)), "the most there is"
    assert found.mean_accuracy == 50.0
    assert found.mean_nll == pytest.approx(-math.log(FLOOR) / 2)
    assert found.ensemble_nll == pytest.approx(math.log(2))


def test_three_members_right_in_turn_are_right_together():
    wrong, right = torch.tensor([0.6, 0.4]), torch.tensor([0.1, 0.9])
    members = torch.stack([torch.stack([wrong if i == j else right for j in range(3)]) for i in range(3)])
    found = ensemble_metrics(members, torch.ones(3, dtype=torch.long))
    assert found.mean_accuracy == pytest.approx(200 / 3)
    assert found.ensemble_accuracy == 100.0
    assert found.disagreement == pytest.approx(2 / 3)


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_divergences_are_scipys(seed, members):
    table = random_members(seed, members, samples=7).double().numpy()
    found = ensemble_metrics(torch.tensor(table), torch.zeros(7, dtype=torch.long))
    pairs = list(combinations(range(members), 2))
    kl = np.mean([[entropy(table[a], table[b], axis=1), entropy(table[b], table[a], axis=1)] for a, b in pairs])
    js = np.mean([jensenshannon(table[a], table[b], axis=1) ** 2 for a, b in pairs])
    assert found.kl == pytest.approx(kl, rel=1e-6)
    assert found.js == pytest.approx(js, rel=1e-6)
    assert 0 <= found.js <= math.log(2)


def test_calibration_by_hand():
    """Ten predictions at 0.75 of which six are right, ten at 0.95 all right: (10 * 0.15 + 10 * 0.05) / 20."""
    probabilities = torch.tensor([[0.75, 0.25]] * 10 + [[0.95, 0.05]] * 10, dtype=torch.float64)
    labels = torch.tensor([0] * 6 + [1] * 4 + [0] * 10)
    assert float(calibration_error(probabilities, labels)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("probabilities", "labels"), [(torch.ones(1, 4, 2), LABELS), (torch.ones(4, 2), LABELS), (torch.ones(3, 5, 2), LABELS)]
)
def test_what_is_no_ensemble_is_refused(probabilities, labels):
    with pytest.raises(ValueError, match="an ensemble is"):
        ensemble_metrics(probabilities, labels)
