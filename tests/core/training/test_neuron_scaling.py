"""SparseOpt's scaling of gradients by the sparsity of neurons, against a loop over neurons in float64."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raylth.core.masks import full_mask
from raylth.core.models import init_model
from raylth.core.training import engine_proof
from raylth.core.training.adamw import AdamW
from raylth.core.training.engine_proof import prove, usable
from raylth.core.training.engines import program as engines
from raylth.core.training.engines.program import make_program
from raylth.core.training.loop import Recipe, train, train_together
from raylth.core.training.optimizer import Optimizer, neuron_factors
from raylth.core.training.packing import Program
from raylth.core.training.sgd import SGD
from raylth.core.training.step import LeanStep, _optimizer
from tests.core.training.test_loop import random_split

SGD_RECIPE = Recipe(2, lr=0.05, batch_size=16, neuron_scaling=True)
ADAMW_RECIPE = Recipe(2, 0.003, 16, momentum=0.0, optimizer="adamw", eps=1e-2, neuron_scaling=True)  # eps: it shows
RECIPES = {"sgd": SGD_RECIPE, "adamw": ADAMW_RECIPE}


def uneven(mask, seed=0):
    """A mask whose neurons keep from none to all of their weights."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, alive in mask.items():
        density = torch.linspace(0, 1, len(alive)).view(-1, *(1,) * (alive.ndim - 1))
        found[name] = torch.rand(alive.shape, generator=generator) < density
    return found


def even(mask):
    """A mask whose neurons all keep every third weight but the first."""
    return {
        name: (torch.arange(alive[0].numel()) % 3 != 1).view(alive[0].shape).expand_as(alive) for name, alive in mask.items()
    }


def by_neuron(alive):
    """The factors, neuron by neuron."""
    sparsities = [1 - float(neuron.double().mean()) for neuron in alive]
    mean = sum(sparsities) / len(sparsities)
    return [((1 - sparsity) ** 0.5 / (1 - mean) ** 0.5) for sparsity in sparsities]


def mlp(seed=0):
    return init_model(seed, "mlp", width=0.25, num_classes=10, in_shape=(40,))


def same_bits(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_factors_of_a_hand_made_layer():
    alive = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]]).bool()
    found = neuron_factors(alive)
    assert found.shape == (4, 1)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx([2**0.5, 0.5**0.5, 0.0, 1.5**0.5])  # s_mean is 1/2


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 1000))
def test_factors_are_the_formulas_and_their_squares_have_the_mean_1(neurons, inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(neurons, inputs, 3, 3, generator=generator) < torch.rand(neurons, 1, 1, 1, generator=generator)
    found = neuron_factors(alive)
    assert found.shape == (neurons, 1, 1, 1)
    if alive.any():
        assert found.flatten().tolist() == pytest.approx(by_neuron(alive), rel=1e-6, abs=1e-7)
        assert float(found.double().square().mean()) == pytest.approx(1, rel=1e-6)
        repeated = torch.cat([alive, alive], 1)
        assert torch.equal(neuron_factors(repeated), found), "sparsities decide, not how many inputs there are"
    else:
        assert (found == 1).all()


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_factors_of_equally_sparse_neurons_are_exactly_1(neurons, inputs, data):
    kept = data.draw(st.integers(0, inputs))
    assert (neuron_factors((torch.arange(inputs) < kept).expand(neurons, inputs)) == 1).all()


class Layers(nn.Module):
    """Sizes that fill registers and others, a convolution, a bias, and a layer that gets no gradient."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5)
        self.full, self.head, self.unused = nn.Linear(20, 16), nn.Linear(16, 3), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(torch.relu(self.full(torch.relu(self.norm(self.conv(x))).flatten(1))))


@pytest.mark.parametrize("update", ["sgd", "adamw"])
def test_the_update_is_that_of_torch_with_gradients_scaled_neuron_by_neuron_in_float64(update):
    torch.manual_seed(0)
    ours = Layers()
    mask = uneven(full_mask(ours))
    with torch.no_grad():
        for name, alive in mask.items():
            ours.get_parameter(name).mul_(alive)
    theirs = copy.deepcopy(ours).double()
    recipe = replace(RECIPES[update], weight_decay=0.01)
    optimizer = _optimizer(Program([ours]), recipe, [mask])
    assert isinstance(optimizer, {"sgd": SGD, "adamw": AdamW}[update])
    if update == "sgd":
        reference = torch.optim.SGD(theirs.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    else:
        reference = torch.optim.AdamW(theirs.parameters(), lr=1.0, eps=recipe.eps, weight_decay=0.01)
    for rate in (0.1, 0.05, 0.02):
        x = torch.randn(8, 2, 4, 4)
        optimizer.zero_grad()
        ours(x).square().mean().backward()
        optimizer.step(rate)
        reference.zero_grad()
        theirs(x.double()).square().mean().backward()
        for name, alive in mask.items():
            parameter = theirs.get_parameter(name)
            for number, factor in enumerate(by_neuron(alive) if parameter.grad is not None else ()):
                parameter.grad[number] *= factor
        reference.param_groups[0]["lr"] = rate
        reference.step()
        with torch.no_grad():
            for name, alive in mask.items():
                theirs.get_parameter(name).mul_(alive)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(ours.unused.weight, theirs.unused.weight.float()), "no gradient, no step"


@pytest.mark.parametrize("update", RECIPES)
def test_equally_sparse_neurons_are_trained_to_the_bits_of_the_plain_optimizer(update):
    split, recipe = random_split((40,)), RECIPES[update]
    masks = {"everything": full_mask(mlp()), "even": even(full_mask(mlp())), "uneven": uneven(full_mask(mlp())), "none": None}
    for name, mask in masks.items():
        scaled, plain = mlp(), mlp()
        losses = train(scaled, split, recipe, seed=1, mask=mask)
        others = train(plain, split, replace(recipe, neuron_scaling=False), seed=1, mask=mask)
        assert (losses == others) == same_bits(scaled, plain) == (name != "uneven"), name


def test_nothing_is_multiplied_where_all_factors_are_1():
    program, mask = Program([mlp()]), full_mask(mlp())
    assert _optimizer(program, SGD_RECIPE, [mask]).scaled == []
    assert _optimizer(program, SGD_RECIPE, [None]).scaled == []
    mask["fc2.weight"][0, 0] = False
    assert [len(p) for p, _ in _optimizer(program, SGD_RECIPE, [mask]).scaled] == [32]
    assert _optimizer(program, replace(SGD_RECIPE, neuron_scaling=False), [mask]).scaled == []


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("update", RECIPES)
def test_members_of_a_pack_have_their_own_factors_and_the_bits_that_they_have_alone(update, engine):
    split, recipe, full = random_split((40,)), RECIPES[update], full_mask(mlp())
    masks = [uneven(full, 1), even(full), uneven(full, 2)]  # in the second no factor is other than 1
    networks, alone = [mlp(seed) for seed in range(3)], [mlp(seed) for seed in range(3)]
    train_together(make_program(networks, engine), split, recipe, seeds=[4, 5, 6], masks=masks)
    for number, network in enumerate(alone):
        train(network, split, recipe, seed=4 + number, mask=masks[number])
        assert same_bits(network, networks[number]), number


def test_two_parameters_that_are_added_up_are_each_scaled_once():
    """Their gradients may be one tensor."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)

        def forward(self, x):
            return nn.functional.linear(x, self.one.weight + self.two.weight)

    ours = Sum()
    mask = uneven(full_mask(ours))
    step = LeanStep(Program([ours]), SGD_RECIPE, [mask], torch.device("cpu"))
    step._differentiate(ours(torch.randn(4, 16)).square().sum())
    before = ours.one.weight.grad.clone()
    assert torch.equal(before, ours.two.weight.grad)
    step.optimizer._scale_gradients()
    for layer in (ours.one, ours.two):
        factors = neuron_factors(mask["one.weight" if layer is ours.one else "two.weight"])
        assert torch.equal(layer.weight.grad, before * factors)


@pytest.mark.parametrize("update", RECIPES)
def test_a_resumed_training_ends_with_the_same_bits(update):
    split, states, mask = random_split((40,)), [], uneven(full_mask(mlp()))
    whole, other = mlp(), mlp(9)
    losses = train(
        whole, split, RECIPES[update], seed=3, mask=mask,
        on_step=lambda epochs, step, snapshot: states.append(snapshot()) if (epochs, step) == (1, 2) else None,
    )  # fmt: skip
    assert train(other, split, RECIPES[update], seed=3, mask=mask, state=states[0]) == losses
    assert same_bits(whole, other)


def test_an_engine_without_the_scaling_is_not_used(monkeypatch):
    networks, shape = [mlp(0), mlp(1)], (40,)
    monkeypatch.setattr(engine_proof, "PROVED", {})
    assert prove("graph", networks, SGD_RECIPE, shape).is_exact

    class Unscaled(LeanStep):
        def __init__(self, program, recipe, *rest):
            super().__init__(program, replace(recipe, neuron_scaling=False), *rest)

    monkeypatch.setattr(engines, "LeanStep", Unscaled)
    plain = replace(SGD_RECIPE, neuron_scaling=False)
    assert usable("graph", networks, plain, shape) == ("graph", []), "what is proved for one recipe is not for the other"
    engine, (line,) = usable("graph", networks, SGD_RECIPE, shape)
    assert engine == "eager"
    assert line.startswith("engine 'graph' is not used: after 20 steps it is ")


def test_factors_lie_as_the_weights_of_a_stacked_program_do():
    stacked = pytest.importorskip("raylth.core.training.engines.stacked", reason="needs Triton")
    networks = [init_model(seed, "resnet20", width=0.25, num_classes=10, in_shape=(3, 8, 8)) for seed in range(2)]
    masks = [uneven(full_mask(network), seed) for seed, network in enumerate(networks)]
    optimizer: Optimizer = _optimizer(stacked.Stacked(networks), SGD_RECIPE, masks)
    found = {name: factors for name, p in optimizer.parameters.items() for q, factors in optimizer.scaled if p is q}
    assert set(found) == set(masks[0])
    for name, factors in found.items():
        assert factors.stride() == optimizer.parameters[name].stride()
        for number, mask in enumerate(masks):
            assert torch.equal(factors[number], neuron_factors(mask[name]).expand_as(mask[name]))
