"""Batch-norm statistics, REPAIR and barriers, against slow references."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import DenseNet, ResNet
from torchvision.models.resnet import Bottleneck

from raylth.core.batchnorm import reset_bn_stats
from raylth.core.data import load_dataset
from raylth.core.interpolate import average, barrier, interpolate, line
from raylth.core.layerwise import reset_and_predict
from raylth.core.matching import match_activations
from raylth.core.matching.weight import match_weights
from raylth.core.models import init_model
from raylth.core.modes import freeze_dropout
from raylth.core.permutation import derive_spec, random_permutation
from raylth.core.repair import mean_statistics, repair, repair_sites, repair_to, site_statistics
from raylth.core.training.loop import Recipe, train
from raylth.stages import make_context
from raylth.store import Store
from tests.core import own_networks as own
from tests.core.permutation import test_zoo
from tests.core.permutation.test_zoo import KINDS, ZOO, RandomNetwork


def norm_inputs(model, batches):
    """Every batch norm's inputs in training mode, all samples and positions as rows (n, C) float64."""
    seen = {name: [] for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    reference = copy.deepcopy(model)
    freeze_dropout(reference.train())
    for name, into in seen.items():
        reference.get_submodule(name).register_forward_pre_hook(lambda _, args, into=into: into.append(args[0].detach()))
    with torch.no_grad():
        for batch in batches:
            reference(batch)
    return {
        name: torch.cat([value.movedim(1, -1).flatten(0, -2) for value in values]).double() for name, values in seen.items()
    }


@pytest.mark.parametrize("shuffled", [True, False])
def test_reset_statistics_equal_a_two_pass_reference(shuffled):
    model = init_model(0, "resnet20", width=0.25, num_classes=10, in_shape=(3, 8, 8))
    x = torch.randn(90, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 90).view(-1, 1, 1, 1)
    if shuffled:
        x = x[torch.randperm(90, generator=torch.Generator().manual_seed(1))]
    batches = x.split(40)  # the last one is smaller
    inputs = norm_inputs(model, batches)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.eval()
    reset_bn_stats(model, batches)
    assert not model.training
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    for name, rows in inputs.items():
        module = model.get_submodule(name)
        torch.testing.assert_close(module.running_mean.double(), rows.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.running_var.double(), rows.var(0), rtol=1e-5, atol=1e-8)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no samples"):
        reset_bn_stats(model, [])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


SHALLOW = {  # one block of each width, where the network itself has many: all is there, in a tenth of the time
    "resnet50": partial(ResNet, Bottleneck, [1, 1, 1, 1]),
    "wide_resnet50_2": partial(ResNet, Bottleneck, [1, 1, 1, 1], width_per_group=128),
    "resnext50_32x4d": partial(ResNet, Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4),
    "densenet121": partial(DenseNet, 16, (2, 2, 2, 2), 32),
}


def build(name):
    """One of this package's networks or of torchvision's, from torch's global generator."""
    if name in OWN:
        return init_model(int(torch.randint(1000, ())), name, width=0.5, num_classes=10, in_shape=(3, 32, 32))
    return SHALLOW.get(name, partial(test_zoo.build, name))(num_classes=10)


def disturb(model, amount):
    """Shift and scale every tensor, so that two networks differ in every statistic."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * (parameter.std(correction=0) + 0.1) * torch.randn_like(parameter))
    return model


def make_biased(model, counts):
    """Turn running variances into those of the one batch, so that evaluation computes what training did on it."""
    for site, count in counts.items():
        model.get_submodule(site).running_var.mul_((count - 1) / count)


def size_for(name):
    """The sides of its images, which leave maps of 2 x 2 at the end of most networks, and flatten what VGG has left."""
    return 32 if name in OWN or "vgg" in name else 40


OWN = ["resnet20", "vgg11"]
EVERY_NETWORK = [*OWN, *(f"torchvision {name}" for name in ZOO)]


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_every_network_can_be_reset_and_repaired(name):
    """Reset equals a two-pass reference; after REPAIR each site's statistics lie between those of the end points."""
    torch.manual_seed(0)
    one, other = (disturb(build(name.split()[-1]), amount) for amount in (0.1, 0.2))
    size = size_for(name)
    x = torch.randn(16, 3, size, size)
    inputs = norm_inputs(one, x.split(10))
    reset_bn_stats(one, x.split(10))
    for site, rows in inputs.items():
        module = one.get_submodule(site)
        torch.testing.assert_close(module.running_mean.double(), rows.mean(0), rtol=1e-4, atol=1e-5, msg=site)
        torch.testing.assert_close(module.running_var.double(), rows.var(0), rtol=1e-4, atol=1e-7, msg=site)
    counts = {site: len(rows) for site, rows in inputs.items()}
    for model in (one, other):
        reset_bn_stats(model, [x])
        make_biased(model, counts)
    ends = [site_statistics(model, [x]) for model in (one, other)]
    middle = copy.deepcopy(one)
    middle.load_state_dict(interpolate(one.state_dict(), other.state_dict(), 0.25))
    wrong = site_statistics(middle, [x])
    repair(middle, *ends, 0.25, [x])
    assert list(middle.state_dict()) == list(one.state_dict()), "nothing is left over"
    found = site_statistics(middle, [x])
    sites = repair_sites(one, x)
    assert sites
    moved = 0
    for site in sites:
        mean = torch.lerp(ends[0][site].mean, ends[1][site].mean, 0.25)
        deviation = torch.lerp(ends[0][site].deviation, ends[1][site].deviation, 0.25)
        slack = 2e-3 * float(deviation.max())
        torch.testing.assert_close(found[site].mean, mean, rtol=2e-3, atol=slack, msg=f"{site} mean")
        torch.testing.assert_close(found[site].deviation, deviation, rtol=2e-3, atol=slack, msg=f"{site} deviation")
        moved += not torch.allclose(wrong[site].deviation, deviation, rtol=2e-3, atol=slack)
    assert moved > 0.5 * len(sites), "without REPAIR the statistics are wrong"


def with_random_signs(model):
    """Give half of the affine weights of every norm, and of every layer scale, the other sign."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
                module.weight.mul_(torch.randn_like(module.weight).sign())
        for name, parameter in model.named_parameters():
            if name.endswith("layer_scale"):
                parameter.mul_(torch.randn_like(parameter).sign())
    return model


def assert_repair_changes_nothing(model, x):
    """REPAIR half-way between a network and itself, by one batch, gives its outputs to rounding."""
    middle = copy.deepcopy(model)
    middle.load_state_dict(interpolate(model.state_dict(), model.state_dict(), 0.5))
    statistics = site_statistics(model, [x])
    repair(middle, statistics, statistics, 0.5, [x])
    for inputs in (x, torch.randn_like(x)):  # also where units vary that did not before
        with torch.no_grad():
            expected, found = model.eval()(inputs), middle.eval()(inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    return middle


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_repair_between_a_network_and_itself_is_that_network(name):
    """Whatever the signs of the affine weights, and wherever its units stand; its statistics are of other data."""
    torch.manual_seed(1)
    model = with_random_signs(disturb(build(name.split()[-1]), 0.1))
    size = size_for(name)
    x, other = torch.randn(8, 3, size, size), torch.randn(8, 3, size, size)
    reset_bn_stats(model, [other])
    assert_repair_changes_nothing(model, x)
    planted = random_permutation(derive_spec(model, x[:2]), 3)
    there = planted.apply(model.state_dict())
    back = planted.inverse().apply(there)
    assert all(torch.equal(back[key], tensor) for key, tensor in model.state_dict().items()), "pi(A), aligned with A, is A"
    moved = copy.deepcopy(model)
    moved.load_state_dict(there)
    repaired = assert_repair_changes_nothing(moved, x)
    with torch.no_grad():
        expected = model.eval()(x)
        torch.testing.assert_close(repaired(x), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(KINDS), max_size=4), st.sampled_from([4, 8]), st.booleans(), st.integers(0, 3))
def test_repair_between_a_random_network_and_itself_is_that_network(blocks, channels, flatten, seed):
    torch.manual_seed(seed)
    assert_repair_changes_nothing(with_random_signs(RandomNetwork(blocks, channels, flatten)), torch.randn(16, 3, 4, 4))


class Uses(nn.Module):
    """Modules and tensors that are used twice, each in another way, beside some that are used once."""

    def __init__(self):
        super().__init__()
        self.first, self.once = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.twice, self.norm_twice = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.tied, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.tied.weight
        self.read, self.before = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.once(self.first(x)))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        x = torch.relu(self.other(torch.tanh(self.tied(x))))
        x = torch.relu(F.linear(self.read(x), self.read.weight))
        x = torch.relu(self.norm_twice(self.before(torch.tanh(self.norm_twice(x)))))
        return self.head(F.dropout(x, 0.5, training=self.training))


def test_what_is_used_twice_is_left_as_it_is():
    """Modules called twice, tied weights, a weight that is read by itself, a norm for two places: none is a site."""
    torch.manual_seed(0)
    model = with_random_signs(disturb(Uses(), 0.3))
    x = torch.randn(64, 6)
    assert repair_sites(model, x) == ["once", "before"], "the layer before a norm that is left alone is a site itself"
    reset_bn_stats(model, [x])
    middle = assert_repair_changes_nothing(model, x)
    left = [name for name in model.state_dict() if name.split(".")[0] in ("twice", "norm_twice", "tied", "other", "read")]
    assert all(torch.equal(middle.state_dict()[name], model.state_dict()[name]) for name in left)


class Encoder(nn.Module):
    """Torch's own transformer layer, whose attention is one module."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(self.embed(x)).mean(1))


@pytest.mark.parametrize("kind", ["vit", "encoder"])
def test_the_layers_of_transformers_get_the_statistics_between_those_of_the_ends(kind):
    torch.manual_seed(0)
    settings = {"width": 0.25, "num_classes": 10, "in_shape": (3, 8, 8), "options": {"depth": 2}}
    make = Encoder if kind == "encoder" else lambda: init_model(0, "vit", **settings)
    one, other = (disturb(make(), amount) for amount in (0.1, 0.3))
    x = torch.randn(64, 4, 5) if kind == "encoder" else torch.randn(64, 3, 8, 8)
    sites = repair_sites(one, x)
    expected = {"embed", "layer.self_attn", "layer.linear1", "layer.linear2"}
    if kind == "vit":
        layers = ("attn.qkv", "attn.proj", "fc1", "fc2")
        expected = {"patch_embed", *(f"blocks.{block}.{layer}" for block in (0, 1) for layer in layers)}
    assert set(sites) == expected
    ends = [site_statistics(model, [x]) for model in (one, other)]
    middle = copy.deepcopy(one)
    middle.load_state_dict(interpolate(one.state_dict(), other.state_dict(), 0.25))
    repair(middle, *ends, 0.25, [x])
    found = site_statistics(middle, [x])
    for site in sites:
        for name in ("mean", "deviation"):
            wanted = torch.lerp(*(getattr(end[site], name) for end in ends), 0.25)
            torch.testing.assert_close(getattr(found[site], name), wanted, rtol=2e-3, atol=2e-3, msg=f"{site} {name}")
    assert_repair_changes_nothing(one, x)


def test_a_weight_that_is_nought_stays_so_and_a_negative_one_negative():
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)) for _ in range(2))
    with torch.no_grad():
        one[1].weight.copy_(torch.tensor([1.0, -1.0, 2.0]))
        other[1].weight.copy_(torch.tensor([-1.0, -3.0, -1.0]))
    x = torch.randn(32, 4)
    middle = copy.deepcopy(one)
    middle.load_state_dict(interpolate(one.state_dict(), other.state_dict(), 0.5))
    repair(middle, *(site_statistics(end, [x]) for end in (one, other)), 0.5, [x])
    assert middle[1].weight.sign().tolist() == [0, -1, 1]
    with pytest.raises(ValueError, match="no samples"):
        repair(middle, *(site_statistics(end, [x]) for end in (one, other)), 0.5, [])


def test_a_unit_that_does_not_vary_on_the_samples_is_the_same_elsewhere():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].bias[:2] = -10.0  # dead on small inputs
        model[2].weight.copy_(torch.randn(6))
    reset_bn_stats(model, [10 * torch.randn(64, 4)])
    x = torch.randn(64, 4)
    assert site_statistics(model, [x])["2"].deviation[:2].tolist() == [0, 0]
    middle = assert_repair_changes_nothing(model, x)
    with torch.no_grad():
        torch.testing.assert_close(middle.eval()(20 * x), model.eval()(20 * x), rtol=1e-3, atol=1e-3)


def test_a_network_whose_blocks_began_at_nought_keeps_its_accuracy():
    """The last batch norm of each block begins with weights of 0 (as timm's do), of which training makes some negative."""
    split = make_context(Store("unused"), load_dataset("digits"), data_sha256="unused").train
    model = init_model(0, "resnet20", width=0.25, num_classes=10, in_shape=(1, 8, 8))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bn2.weight"):
                parameter.zero_()
    train(model, split, Recipe(3, lr=0.1), seed=0)
    negative = sum(int((parameter < 0).sum()) for name, parameter in model.named_parameters() if name.endswith("bn2.weight"))
    assert negative >= 10
    x, y = next(split.batches(1000))
    middle = assert_repair_changes_nothing(model, x)
    with torch.no_grad():
        accuracies = [float((network.eval()(x).argmax(1) == y).double().mean()) for network in (model, middle)]
    assert accuracies[0] > 0.7
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.003)


def test_repair_reduces_the_barrier_of_a_planted_pair_to_zero():
    """A and a permuted, slightly trained-on copy: a high barrier as they stand, none once matched, REPAIR never worse."""
    split = make_context(Store("unused"), load_dataset("mnist1d"), data_sha256="unused").train
    x, y = next(split.batches(2000))
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


@pytest.mark.parametrize("name", [*OWN, "torchvision mobilenet_v3_small", "torchvision googlenet"])
def test_one_walk_over_the_layers_is_a_reset_by_one_batch_and_an_evaluation(name):
    """However the samples are cut, the statistics are those that evaluation then sees, and the outputs evaluation's."""
    torch.manual_seed(0)
    model = disturb(build(name.split()[-1]), 0.1)
    size = size_for(name)
    x = torch.randn(160, 3, size, size)
    expected = copy.deepcopy(model)
    reset_bn_stats(expected, [x])
    model.train()
    found = reset_and_predict(model, x.split(51))
    assert model.training, "the flag is left alone"
    inputs = {}
    for site, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args, site=site: inputs.update({site: args[0]}))
    with torch.no_grad():
        torch.testing.assert_close(found, model.eval()(x), rtol=1e-4, atol=1e-5)
    for site, value in inputs.items():
        rows, module = value.movedim(1, -1).flatten(0, -2).double(), model.get_submodule(site)
        torch.testing.assert_close(module.running_mean.double(), rows.mean(0), rtol=1e-4, atol=1e-5, msg=site)
        torch.testing.assert_close(module.running_var.double(), rows.var(0), rtol=1e-4, atol=1e-7, msg=site)
        in_training = expected.get_submodule(site)  # divides by the biased deviation: a matter of 1 / samples
        torch.testing.assert_close(module.running_var, in_training.running_var, rtol=0.02, atol=1e-5, msg=site)
    with pytest.raises(ValueError, match="no samples"):
        reset_and_predict(model, [])


def test_a_batch_norm_with_a_forward_pass_of_its_own_is_reset_layer_by_layer_too():
    torch.manual_seed(0)
    model, x = own.Normalised(own.NormAndActivation), 3 * torch.randn(64, own.IN) + 1
    by_hand = copy.deepcopy(model)
    reset_bn_stats(by_hand, [x])
    found = reset_and_predict(model, x.split(20))
    torch.testing.assert_close(model.norm.running_mean, by_hand.norm.running_mean)
    torch.testing.assert_close(model.norm.running_var, by_hand.norm.running_var)
    torch.testing.assert_close(found, by_hand.eval()(x))


def test_a_mean_of_several_networks_gets_the_mean_of_their_statistics():
    """Three ends as one: means and deviations of each channel are the ends' means."""
    torch.manual_seed(0)
    ends = [disturb(init_model(0, "vgg11", width=0.125, num_classes=10, in_shape=(3, 32, 32)), 0.2) for _ in range(3)]
    x = torch.randn(64, 3, 32, 32)
    statistics = [site_statistics(end, [x]) for end in ends]
    merged = copy.deepcopy(ends[0])
    merged.load_state_dict(average([end.state_dict() for end in ends]))
    repair_to(merged, mean_statistics(statistics), [x])
    for name, found in site_statistics(merged, [x]).items():
        for part in ("mean", "deviation"):
            wanted = sum(getattr(each[name], part) for each in statistics) / 3
            torch.testing.assert_close(getattr(found, part), wanted, rtol=2e-3, atol=2e-3)
    first = next(iter(statistics[0]))
    with pytest.raises(ValueError, match="another architecture"):
        mean_statistics([statistics[0], {first: statistics[1][first]}])
