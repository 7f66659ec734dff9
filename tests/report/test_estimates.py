"""The statistics of few replicates against SciPy's tests, against quadrature and against simulated experiments."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from raylth.report import power_table
from raylth.report.estimates import fieller, holm, mean_of, noncentrality, power_of, smallest_effect, welch

METHOD = Path(__file__).parents[2] / "docs/method.md"
VALUES = st.lists(st.floats(-50, 50).map(lambda value: round(value, 3)), min_size=2, max_size=8)


@given(VALUES)
def test_a_mean_has_the_interval_and_p_of_students_test(values):
    found = mean_of(values)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    if np.ptp(values) > 1e-3:
        expected = stats.ttest_1samp(values, 0)
        assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-6, abs=1e-6)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-9)


@given(VALUES, VALUES)
def test_an_unpaired_difference_is_welchs(ours, theirs):
    found = welch(ours, theirs)
    assert found.value == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-9)
    if np.ptp(ours) > 1e-2 and np.ptp(theirs) > 1e-2:
        expected = stats.ttest_ind(ours, theirs, equal_var=False)
        assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-5, abs=1e-5)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(("values", "value", "p"), [([], np.nan, np.nan), ([3.0], 3.0, np.nan), ([2.0, 2.0], 2.0, 0.0)])
def test_means_of_none_of_one_and_of_values_that_do_not_differ(values, value, p):
    found = mean_of(values)
    assert found.value == pytest.approx(value, nan_ok=True)
    assert found.p == pytest.approx(p, nan_ok=True)
    assert np.isnan(found.interval).all() == (len(values) < 2)
    assert np.isnan(welch([1.0], [1.0, 2.0]).p)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_holm_refuses_what_the_step_down_procedure_refuses(p_values, level):
    """The procedure as Holm wrote it: the smallest p-value against level / m, the next against level / (m - 1), and so on."""
    corrected = holm(pd.Series([*p_values, np.nan]))
    assert np.isnan(corrected.iloc[-1]), "a missing p-value is no test, and does not count"
    refused = set()
    for step, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] * (len(p_values) - step) > level:
            break
        refused.add(int(place))
    assert {place for place in range(len(p_values)) if corrected[place] <= level} == refused
    assert (corrected.dropna() >= pd.Series(p_values)).all()


def test_sweeps_without_an_effect_claim_one_in_twenty_at_most():
    """The planned contrasts of five arms that do not differ, over 2,000 sweeps of 4 replicates."""
    rng = np.random.default_rng(0)
    arms = rng.normal(0, 1, (2000, 4, 5))
    contrasts = np.stack([arms[..., a] - arms[..., b] for a, b in ((1, 2), (0, 1), (1, 3), (2, 4))], axis=-1)
    p_values = stats.ttest_1samp(contrasts, 0, axis=1).pvalue
    corrected = np.array([holm(pd.Series(row)).min() for row in p_values])
    assert (corrected < 0.05).mean() < 0.055
    assert (p_values.min(axis=1) < 0.05).mean() > 0.12, "as they are, one in seven claims something"


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_fiellers_interval_has_the_ratios_that_a_t_test_does_not_refuse(seed, n):
    rng = np.random.default_rng(seed)
    below = rng.normal(15, 3, n)
    above = rng.normal(0.4, 0.2) * below + rng.normal(0, 2, n)
    found = fieller(above, below)
    is_above = n > 1 and stats.ttest_1samp(below, 0).confidence_interval(0.95).low > 0
    assert (found is not None) == is_above
    if found is None:
        return
    ratio, low, high = found
    assert ratio == pytest.approx(above.mean() / below.mean())
    assert low < ratio < high
    width = high - low
    for end in (low, high):
        assert stats.ttest_1samp(above - end * below, 0).pvalue == pytest.approx(0.05, rel=1e-4)
    for r in (low - 0.1 * width, high + 0.1 * width):
        assert stats.ttest_1samp(above - r * below, 0).pvalue < 0.05
    for r in (low + 0.1 * width, high - 0.1 * width):
        assert stats.ttest_1samp(above - r * below, 0).pvalue > 0.05


def test_a_ratio_needs_a_distance():
    above = [1.0, 2.0, 3.0]
    assert fieller(above, [0.1, -0.2, 0.3]) is None, "not significantly above 0"
    assert fieller(above, [-10.0, -11.0, -10.5]) is None, "significantly below"
    assert fieller([1.0], [10.0]) is None


@pytest.mark.parametrize("df", [1.0, 1.3, 2.0, 3.7, 4.0, 9.0, 29.0, 300.0])
def test_the_smallest_effect_has_its_power_by_quadrature(df):
    """The t statistic, integrated over the deviation's distribution (chi), without the noncentral t of SciPy."""
    effect, critical = noncentrality(df), stats.t.ppf(0.975, df)

    def of_scale(s):
        return (stats.norm.sf(critical * s - effect) + stats.norm.cdf(-critical * s - effect)) * chi(s)

    def chi(s):
        return 2 * df * s * stats.chi2.pdf(df * s * s, df)

    assert integrate.quad(of_scale, 0, 20, limit=500)[0] == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_simulated_sweeps_show_the_smallest_effect_in_four_of_five(n):
    rng = np.random.default_rng(n)
    deviation = 0.7
    effect = smallest_effect(n, deviation)
    differences = rng.normal(effect, deviation, (20_000, n))
    shown = (stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05).mean()
    assert shown == pytest.approx(0.8, abs=0.01)
    assert power_of(effect, deviation, n) == pytest.approx(0.8)
    assert power_of(0.0, deviation, n) == pytest.approx(0.05)


def test_the_power_table_of_the_documentation_is_the_computed_one():
    section = METHOD.read_text().split("## What a sweep can show")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| (\d+) % \|", section, re.MULTILINE)
    assert len(rows) == 3
    computed = power_table().set_index("n")
    for n, smallest, power, above in rows:
        row = computed.loc[int(n)]
        assert (smallest, power, above) == (
            f"{row['smallest_effect']:.2f}", f"{row['mean_power']:.2f}", f"{100 * row['cells_above']:.0f}"
        )  # fmt: skip
    assert computed.loc[3, "mean_power"] == pytest.approx(0.53, abs=0.01), "three replicates miss half of Table 5's cells"
