"""Batch-norm statistics, REPAIR and barriers, against slow references."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from raylth.core.batchnorm import reset_bn_stats
from raylth.core.data import load_dataset
from raylth.core.interpolate import barrier, interpolate, line
from raylth.core.matching import match_activations
from raylth.core.models import init_model
from raylth.core.permutation import derive_spec, random_permutation
from raylth.core.repair import repair, repair_sites, site_statistics
from raylth.core.train import Recipe, train
from raylth.core.weight_matching import match_weights
from raylth.stages import make_context
from raylth.store import Store


@pytest.mark.parametrize("shuffled", [True, False])
def test_reset_statistics_equal_a_two_pass_reference(shuffled):
    model = init_model(0, "resnet20", width=0.25, num_classes=10, in_shape=(3, 8, 8))
    x = torch.randn(90, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 90).view(-1, 1, 1, 1)
    if shuffled:
        x = x[torch.randperm(90, generator=torch.Generator().manual_seed(1))]
    batches = x.split(40)  # the last one is smaller
    seen = {name: [] for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    reference = copy.deepcopy(model).train()
    for name, into in seen.items():
        reference.get_submodule(name).register_forward_pre_hook(lambda _, args, into=into: into.append(args[0].detach()))
    for batch in batches:
        reference(batch)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.eval()
    reset_bn_stats(model, batches)
    assert not model.training
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    for name, inputs in seen.items():
        rows = torch.cat([value.movedim(1, -1).flatten(0, -2) for value in inputs]).double()
        module = model.get_submodule(name)
        torch.testing.assert_close(module.running_mean.double(), rows.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.running_var.double(), rows.var(0), rtol=1e-5, atol=1e-8)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no samples"):
        reset_bn_stats(model, [])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


NETWORKS = {
    "vgg11 without batch norm": lambda: init_model(0, "vgg11", width=0.25, num_classes=10, in_shape=(3, 32, 32)),
    "resnet20": lambda: init_model(0, "resnet20", width=0.5, num_classes=10, in_shape=(3, 16, 16)),
    "torchvision's vgg11": lambda: nn.Sequential(*models.vgg11(weights=None).features[:6], nn.Flatten(), nn.Linear(8192, 5)),
    "densenet-like": lambda: models.DenseNet(8, (2, 2), 16, num_classes=5),
    "mobilenet_v2": lambda: models.mobilenet_v2(weights=None, width_mult=0.25, num_classes=5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_repaired_network_has_the_statistics_between_its_end_points(name):
    torch.manual_seed(0)
    one, other = NETWORKS[name](), NETWORKS[name]()
    for number, model in enumerate((one, other)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * (number + 1) * (parameter.std(correction=0) + 0.1) * torch.randn_like(parameter))
    size = 64 if name == "mobilenet_v2" else 32
    x = torch.randn(256, 3, size, size)
    for model in (one, other):
        reset_bn_stats(model, [x])
    ends = [site_statistics(model, [x]) for model in (one, other)]
    middle = copy.deepcopy(one)
    middle.load_state_dict(interpolate(one.state_dict(), other.state_dict(), 0.25))
    repair(middle, *ends, 0.25, [x])
    assert list(middle.state_dict()) == list(one.state_dict()), "nothing is left over"
    found = site_statistics(middle, [x])
    assert found
    for site in repair_sites(one):
        mean = torch.lerp(ends[0][site].mean, ends[1][site].mean, 0.25)
        deviation = torch.lerp(ends[0][site].deviation, ends[1][site].deviation, 0.25)
        slack = 0.02 * float(deviation.max())  # running variances are unbiased, those of the one batch are not
        torch.testing.assert_close(found[site].mean, mean, rtol=0.02, atol=slack, msg=f"{site} mean")
        torch.testing.assert_close(found[site].deviation, deviation, rtol=0.02, atol=slack, msg=f"{site} deviation")


def test_repair_brings_the_barrier_of_a_planted_pair_to_zero():
    """A and a permuted, slightly trained-on copy: a high barrier as they stand, none once matched, REPAIR never worse."""
    split = make_context(Store("unused"), load_dataset("mnist1d"), data_sha256="unused").train
    x, y = split.batch(slice(0, 2000))
    model = init_model(0, "mlp", width=0.5, num_classes=10, in_shape=(40,))
    train(model, split, Recipe(8, lr=0.08), seed=0)
    spec = derive_spec(model, x[:2])
    other = copy.deepcopy(model)
    other.load_state_dict(random_permutation(spec, 1).apply(model.state_dict()))
    train(other, split, Recipe(1, lr=0.002), seed=1)

    def loss(network):
        with torch.no_grad():
            return float(F.cross_entropy(network.eval()(x), y))

    def barrier_between(state_a, *, repaired):
        network = copy.deepcopy(other)
        network.load_state_dict(state_a)
        ends = [site_statistics(end, [x]) for end in (network, other)]

        def measure(alpha, state):
            between = copy.deepcopy(other)
            between.load_state_dict(state)
            if repaired and 0 < alpha < 1:
                repair(between, *ends, alpha, [x])
            return loss(between)

        alphas = [0, 0.25, 0.5, 0.75, 1]
        return barrier(line(state_a, other.state_dict(), alphas, measure), alphas)

    states = model.state_dict(), other.state_dict()
    found = {
        "activation": match_activations(model, other, spec, x.split(500)).permutation,
        "weight": match_weights(*states, spec, 0).permutation,
    }
    unmatched = barrier_between(states[0], repaired=False)
    assert unmatched > 0.3
    for method, permutation in found.items():
        plain, repaired = (barrier_between(permutation.apply(states[0]), repaired=flag) for flag in (False, True))
        assert plain < 0.05 * unmatched, method
        assert repaired < 0.05 * unmatched, method
    assert barrier_between(states[0], repaired=True) <= unmatched


def test_barrier_is_the_largest_gap_to_the_chord_and_never_negative():
    assert barrier([1.0, 1.0, 1.0], [0, 0.5, 1]) == 0
    assert barrier([1.0, 3.0, 2.0], [0, 0.5, 1]) == 1.5
    assert barrier([1.0, 0.2, 2.0], [0, 0.5, 1]) == 0
    for values, alphas in (([1.0, 2.0], [0, 0.5]), ([1.0], [0]), ([1.0, float("nan"), 1.0], [0, 0.5, 1])):
        with pytest.raises(ValueError, match="a barrier needs"):
            barrier(values, alphas)
    with pytest.raises(ValueError, match=r"w: A has shape \(2,\), B \(3,\)"):
        interpolate({"w": torch.zeros(2)}, {"w": torch.zeros(3)}, 0.5)
