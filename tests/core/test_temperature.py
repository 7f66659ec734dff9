"""Temperatures against SciPy's minimiser, a closed form, and what holds for any logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from raylth.core.temperature import HIGHEST, LOWEST, cross_fitted, fit_temperature, halves, scaled_loss


def problem(seed, samples=60, classes=5, scale=1.0, skill=1.0):
    """Random logits in which the label's is above the others' by `skill` on average."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    return scale * (logits + skill * F.one_hot(labels, classes)), labels


def size(logits, labels):
    return (logits - logits.gather(1, labels[:, None])).square().mean().sqrt().item()


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 7.0, 300.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_scipys(seed, scale, classes):
    logits, labels = problem(seed, classes=classes, scale=scale)

    def loss(log_t):
        return F.cross_entropy(logits / math.exp(log_t), labels).item()

    middle = math.log(scale)
    expected = minimize_scalar(loss, bounds=(middle - 4, middle + 4), method="bounded", options={"xatol": 1e-10})
    found = fit_temperature(logits, labels)
    assert LOWEST * size(logits, labels) < found < HIGHEST * size(logits, labels), "inside its range"
    assert found == pytest.approx(math.exp(expected.x), rel=1e-6)
    assert loss(math.log(found)) <= expected.fun + 1e-14
    assert scaled_loss(logits, labels, found) == pytest.approx(loss(math.log(found)))


@pytest.mark.parametrize(("right", "of", "margin"), [(3, 4, 1.0), (9, 10, 20.0), (51, 100, 1e-4), (999, 1000, 5.0)])
def test_the_closed_form_of_two_classes(right, of, margin):
    """One margin m for all, and a share p of them right: the loss is smallest where sigmoid(m / T) = p."""
    logits = torch.tensor([[margin, 0.0]], dtype=torch.float64).expand(of, 2)
    labels = (torch.arange(of) >= right).long()
    p = right / of
    assert fit_temperature(logits, labels) == pytest.approx(margin / math.log(p / (1 - p)), rel=1e-11)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(1e-4, 1e4), st.sampled_from([2, 3, 10]))
def test_logits_times_c_have_c_times_the_temperature(seed, c, classes):
    logits, labels = problem(seed, samples=30, classes=classes)
    found = fit_temperature(logits, labels)
    assume(found != 1.0)
    assert fit_temperature(c * logits, labels) == pytest.approx(c * found, rel=1e-9)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.floats(1e-5, 1e5), st.floats(-3, 6), st.integers(1, 40), st.integers(1, 6))
def test_no_loss_on_the_fitted_samples_is_above_the_plain_one(seed, scale, skill, samples, classes):
    """Also where all are right, or logits are of no use."""
    logits, labels = problem(seed, samples, classes, scale, skill)
    plain = F.cross_entropy(logits, labels).item()
    assert scaled_loss(logits, labels, fit_temperature(logits, labels)) <= plain + 1e-12 * max(1.0, plain)


def test_the_ends_of_the_range():
    logits, labels = problem(0, skill=0.0)
    right, wrong = logits.argmax(1), logits.argmin(1)
    assert fit_temperature(logits, right) == pytest.approx(LOWEST * size(logits, right))
    assert fit_temperature(logits, wrong) == pytest.approx(HIGHEST * size(logits, wrong))
    assert fit_temperature(1e4 * logits, right) == 1.0, "which lies in every range"
    assert fit_temperature(1e-4 * logits, wrong) == 1.0
    one = labels.clone()
    one[0] = wrong[0]
    assert LOWEST * size(logits, one) < fit_temperature(logits, one)


def test_what_no_temperature_changes_has_1():
    labels = torch.tensor([0, 2, 1])
    assert fit_temperature(torch.full((3, 3), 7.5), labels) == 1.0
    assert fit_temperature(torch.randn(3, 1), torch.zeros(3, dtype=torch.long)) == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_have_none(bad):
    logits, labels = problem(0)
    logits[3, 1] = bad
    assert math.isnan(fit_temperature(logits, labels))
    assert all(map(math.isnan, cross_fitted(logits, labels)))


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((3, 2), (2,)), ((3, 2), (3, 2)), ((0, 2), (0,)), ((2, 0), (2,))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"\(samples, classes\) logits and \(samples,\) labels, found"):
        fit_temperature(torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.long))


def test_float32_logits_are_fitted_in_float64():
    logits, labels = problem(1)
    single = logits.float()
    assert fit_temperature(single, labels) == fit_temperature(single.double(), labels)


@pytest.mark.parametrize("labels", [torch.arange(20) % 10, torch.arange(21) // 3, torch.tensor([0] * 7 + [1] * 2 + [2])])
def test_halves_have_every_class_in_proportion(labels):
    """Also where classes take turns, so that every second sample would be of every second class."""
    first = halves(labels)
    assert int(first.sum()) == (len(labels) + 1) // 2
    for label in labels.unique():
        own = first[labels == label]
        assert abs(2 * int(own.sum()) - len(own)) <= 1, int(label)


def test_no_sample_is_measured_at_its_own_fit():
    logits, labels = problem(2, samples=31)
    first = halves(labels)
    t_first, t_second = (fit_temperature(logits[own], labels[own]) for own in (first, ~first))
    each = torch.empty(31, dtype=torch.float64)
    each[first] = F.cross_entropy(logits[first] / t_second, labels[first], reduction="none")
    each[~first] = F.cross_entropy(logits[~first] / t_first, labels[~first], reduction="none")
    temperature, loss = cross_fitted(logits, labels)
    assert t_first != t_second
    assert temperature == pytest.approx(math.sqrt(t_first * t_second))
    assert loss == pytest.approx(each.mean().item())


def test_a_single_sample_has_no_other_half():
    with pytest.raises(ValueError, match="found"):
        cross_fitted(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))
