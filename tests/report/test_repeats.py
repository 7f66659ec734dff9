"""Intervals over a search's repeats and its pairs: against SciPy where there is one repeat, and by how often they hold."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raylth.report.repeats import crossed_mean, difference_of


def arm(accuracies, keys=None):
    """Rows of one arm, accuracies by (repeat, pair)."""
    rows = [
        {"repeat": r + 1, "replicate": p, "test_accuracy": value, "pair_key": keys or f"{p}"}
        for r, values in enumerate(accuracies)
        for p, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def mean(rows):
    return crossed_mean(rows.set_index(["repeat", "replicate"])["test_accuracy"])


def test_one_repeat_is_students_paired_interval_or_welchs():
    draws = np.random.default_rng(0)
    ours, theirs = draws.normal(60, 1, (1, 7)), draws.normal(55, 3, (1, 7))
    paired = difference_of(arm(ours), arm(theirs))
    expected = stats.ttest_rel(ours[0], theirs[0]).confidence_interval(0.95)
    assert paired.is_paired
    assert paired.estimate.interval == pytest.approx((expected.low, expected.high))
    apart = difference_of(arm(ours, "one dense network"), arm(theirs, "another"))
    expected = stats.ttest_ind(ours[0], theirs[0], equal_var=False).confidence_interval(0.95)
    assert not apart.is_paired
    assert apart.estimate.interval == pytest.approx((expected.low, expected.high))
    assert apart.estimate.value == pytest.approx(paired.estimate.value)


def test_one_pair_that_is_none_parts_all():
    ours, theirs = arm(np.ones((2, 3))), arm(np.zeros((2, 3)))
    theirs.loc[4, "pair_key"] = "another mask"
    assert not difference_of(ours, theirs).is_paired
    old = [rows.drop(columns="pair_key") for rows in (ours, theirs)]
    assert difference_of(*old).is_paired, "rows that were written before pairs had keys"


def test_nothing_in_common_is_no_difference_and_one_pair_has_no_interval():
    ours = arm([[60.0], [61.0]])
    assert difference_of(ours, ours[ours["repeat"] > 2]) is None
    found = difference_of(ours, arm([[50.0], [52.0]]))
    assert found.estimate.value == pytest.approx(9.5)
    assert found.by_repeat == pytest.approx((10.0, 9.0))
    assert np.isnan(found.estimate.interval).all()


def test_a_pair_that_one_repeat_lacks_counts_for_none():
    values = arm([[1.0, 2.0, 30.0], [2.0, 4.0, 60.0]])
    found, without = mean(values[:-1]), mean(values[values["replicate"] < 2])
    assert found == without
    assert found.value == pytest.approx(2.25)


def test_repeats_that_found_the_same_leave_the_interval_of_their_pairs():
    once = np.random.default_rng(1).normal(5, 2, (1, 10))
    alone = mean(arm(once))
    thrice = mean(arm(np.repeat(once, 3, axis=0)))
    assert thrice.value == pytest.approx(alone.value)
    assert thrice.interval == pytest.approx(alone.interval)


@pytest.mark.parametrize(("repeats", "pairs"), [(3, 3), (3, 10), (5, 10)])
def test_the_interval_holds_the_truth_whatever_varies(repeats, pairs):
    """Repeats, pairs and the rest each vary by 0 or by 1: over 400 searches, never below 90 %."""
    draws = np.random.default_rng(2)
    for by_repeat, by_pair in itertools.product((0.0, 1.0), repeat=2):
        held = 0
        for _ in range(400):
            values = by_repeat * draws.normal(size=(repeats, 1)) + by_pair * draws.normal(size=(1, pairs))
            low, high = mean(arm(values + draws.normal(size=(repeats, pairs)))).interval
            held += low <= 0 <= high
        assert held / 400 >= 0.9, (by_repeat, by_pair)
