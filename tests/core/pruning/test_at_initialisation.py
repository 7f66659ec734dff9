"""Masks before training, each against what its paper defines: differences, an explicit Hessian, a conservation law."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raylth.core.masks import full_mask, num_alive
from raylth.core.models import init_model
from raylth.core.pruning.at_initialisation import (
    TEMPERATURE,
    erk_densities,
    grasp_scores,
    keep_highest,
    random_erk,
    snip_scores,
    synflow,
    synflow_scores,
)


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


NAMES = ("0.weight", "2.weight")
X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(12) % 3


def test_snip_is_the_derivative_of_the_loss_by_whether_a_weight_is_there():
    model = small()
    scores = snip_scores(model, NAMES, [(X[:5], Y[:5]), (X[5:], Y[5:])])

    def loss(name, place, factor):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter(name).view(-1)[place] *= factor
            return float(F.cross_entropy(other(X), Y, reduction="sum"))

    for name in NAMES:
        for place in range(scores[name].numel()):
            slope = (loss(name, place, 1 + 1e-6) - loss(name, place, 1 - 1e-6)) / 2e-6
            assert float(scores[name].view(-1)[place]) == pytest.approx(abs(slope), rel=1e-4, abs=1e-7)


def test_grasp_is_the_weight_times_hessian_times_gradient():
    model = small()
    weights = torch.cat([model.get_parameter(name).detach().flatten() for name in NAMES])

    def loss(flat):
        parts = dict(zip(NAMES, flat.split([20, 15]), strict=True))
        state = {name: part.view(model.get_parameter(name).shape) for name, part in parts.items()}
        return F.cross_entropy(torch.func.functional_call(model, state, (X,)) / TEMPERATURE, Y)

    expected = weights * (torch.autograd.functional.hessian(loss, weights) @ torch.func.grad(loss)(weights))
    found = grasp_scores(model, NAMES, [(X, Y)])
    torch.testing.assert_close(torch.cat([score.flatten() for score in found.values()]), expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(("name", "shape"), [("mlp", (40,)), ("vgg11", (3, 32, 32))])
def test_synaptic_flow_is_conserved_from_layer_to_layer(name, shape):
    model = init_model(0, name, width=0.25, num_classes=10, in_shape=shape)
    scores = synflow_scores(model, full_mask(model), shape)
    flows = [float(score.sum()) for score in scores.values()]
    assert flows == pytest.approx([flows[0]] * len(flows), rel=1e-5)


@pytest.mark.parametrize("alive", [5, 12, 200])
def test_synflow_empties_no_layer_while_there_are_weights_for_all(alive):
    """Also where one-shot magnitudes and SNIP would: the first layer is wide, the others are not."""
    model = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(400,))
    mask = synflow(model, full_mask(model), (400,), alive)
    assert num_alive(mask) == alive
    assert all(bool(kept.any()) for kept in mask.values())


def test_a_network_is_left_as_it_was():
    model = init_model(0, "resnet20", width=0.25, num_classes=10, in_shape=(3, 8, 8)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask = full_mask(model)
    batch = [(torch.randn(8, 3, 8, 8), torch.arange(8))]
    snip_scores(model, mask, batch)
    grasp_scores(model, mask, batch)
    synflow(model, mask, (3, 8, 8), 100, rounds=3)
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_densities_are_in_proportion_to_the_axes_over_their_product():
    shapes = {"a": (100, 200), "b": (64, 32, 3, 3), "c": (300, 100)}
    counts = erk_densities(shapes, 3000)
    assert sum(counts.values()) == 3000
    sizes = {"a": 20000, "b": 18432, "c": 30000}
    rule = {"a": 300 / 20000, "b": 102 / 18432, "c": 400 / 30000}
    ratios = [counts[name] / sizes[name] / rule[name] for name in shapes]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=0.02)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5),
    st.floats(0, 1),
)
def test_any_number_of_weights_is_kept_exactly(shapes, share):
    mask = {str(number): torch.ones(shape, dtype=torch.bool) for number, shape in enumerate(shapes)}
    wanted = round(share * num_alive(mask))
    found = random_erk(mask, wanted, 0)
    assert num_alive(found) == wanted
    assert all(found[name].shape == alive.shape for name, alive in mask.items())


def test_of_equal_scores_exactly_so_many_are_kept():
    scores = {"a": torch.tensor([1.0, 1.0, 0.0]), "b": torch.tensor([[1.0], [2.0]])}
    kept = keep_highest(scores, 3)
    assert kept["a"].tolist() == [False, True, False]
    assert kept["b"].tolist() == [[True], [True]]
    with pytest.raises(ValueError, match="b has a score that is NaN"):
        keep_highest({**scores, "b": torch.tensor([float("nan")])}, 1)
