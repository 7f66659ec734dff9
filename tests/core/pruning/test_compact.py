"""Whole units, and the smaller dense networks that are left without them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raylth.core.masks import apply_mask, full_mask, mask_sparsity, num_alive
from raylth.core.models import build_model
from raylth.core.permutation import derive_spec, random_permutation
from raylth.core.pruning import (
    Structure,
    compact,
    keeps,
    landing_alive,
    nearest_alive,
    prune_global_magnitude,
    prune_structured,
    removable_units,
    unit_groups,
)
from tests.core.permutation.test_attention import Transformer

UNITS = Structure("units")


class Depthwise(nn.Module):
    """A depthwise convolution between two that mix, batch norms, PReLU, and pooling."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.b, self.other, self.act = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.PReLU(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = F.relu(self.depthwise(F.relu(self.norm(self.a(x)))))
        return self.head(self.act(self.other(self.b(x))).mean((2, 3)))


class Mixed(nn.Module):
    """A norm over the units of a layer: what one of them is matters to the others."""

    def __init__(self, norm):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), norm(8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.norm(self.a(x))))))


class CastsInside(nn.Module):
    """It cannot run in float64."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.a(x.float())))


class FixedSizes(nn.Module):
    """Reshapes by numbers of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 3)

    def forward(self, x):
        return self.head(torch.relu(self.a(x)).reshape(-1, 8 * 36))


def ours(name, in_shape, **settings):
    return lambda: build_model(name, num_classes=10, in_shape=in_shape, **settings), in_shape


NETWORKS = {
    "mlp": ours("mlp", (40,), width=0.25),
    "resnet20": ours("resnet20", (3, 8, 8), width=0.5),
    "vgg11": ours("vgg11", (3, 32, 32), width=0.125),
    "flatten of 2 x 2": ours("vgg11", (3, 64, 64), width=0.125),
    "vit": ours("vit", (3, 8, 8), options={"dim": 24, "heads": 3, "depth": 2}),
    "depthwise": (Depthwise, (3, 6, 6)),
}


def make(name):
    torch.manual_seed(0)
    build, in_shape = NETWORKS[name]
    network, x = build(), torch.randn(16, *in_shape)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.5, 1.5)
    network.train()(x)
    return network.eval(), x, derive_spec(network, x)


def masked(network, mask):
    found = copy.deepcopy(network)
    found.load_state_dict(apply_mask(network.state_dict(), mask))
    return found


@torch.no_grad()
def assert_same_function(network, mask, x, *, training=False):
    """Of the masked network and the compact one, by the precision of their tensors; returns the latter in float32."""
    spec = derive_spec(network, x)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-6)):
        cast, inputs = copy.deepcopy(network).to(dtype), x.to(dtype)
        small = compact(cast, mask, inputs, spec=spec)
        assert {parameter.dtype for parameter in small.parameters()} == {dtype}
        expected, found = masked(cast, mask).train(training)(inputs), copy.deepcopy(small).train(training)(inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    return small


@pytest.mark.parametrize("name", NETWORKS)
def test_removed_units_leave_a_smaller_network_of_the_same_function(name):
    network, x, spec = make(name)
    everything = full_mask(network, prune_shortcuts=True)
    units = removable_units(network, spec, x, everything)
    shapes = {each: tuple(alive.shape) for each, alive in everything.items()}
    total = num_alive(everything)
    wanted = nearest_alive(UNITS, shapes, total // 2, units)
    mask = prune_structured(network.state_dict(), everything, UNITS, num_alive=wanted, units=units)
    assert num_alive(mask) == wanted
    assert abs(wanted - total / 2) < 0.1 * total
    assert keeps(mask, UNITS, units) is None
    small = assert_same_function(network, mask, x)
    assert_same_function(network, mask, x, training=True)
    weights = [module.weight for module in small.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert sum(weight.numel() for weight in weights) == wanted, "nothing but alive weights is left"
    pi = random_permutation(spec, 1)
    assert keeps(pi.apply_mask(mask), UNITS, units) is None, "units move with all that belongs to them"
    assert repr(small) != repr(network), "modules say their sizes"


def test_units_with_the_smallest_sums_of_incoming_weights_are_removed():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    everything = full_mask(network)
    units = removable_units(network, derive_spec(network, x), x, everything)
    mask = prune_structured(network.state_dict(), everything, UNITS, num_alive=15, units=units)
    lowest = int(network[0].weight.abs().sum(1).argmin())
    assert [int(mask["0.weight"][unit].sum()) for unit in range(4)] == [0 if unit == lowest else 3 for unit in range(4)]
    assert [int(mask["2.weight"][:, unit].sum()) for unit in range(4)] == [0 if unit == lowest else 2 for unit in range(4)]
    mask["2.weight"][0, lowest] = True
    assert keeps(mask, UNITS, units) == (
        f"2.weight: the weight at (0, {lowest}) is alive, whole units requires the opposite: those of a unit are pruned "
        "together, and no others"
    )


def test_rounds_remove_more_of_the_units_and_none_comes_back():
    network, x, spec = make("mlp")
    mask = full_mask(network)
    units = removable_units(network, spec, x, mask)
    shapes = {name: tuple(alive.shape) for name, alive in mask.items()}
    for sparsity in (0.3, 0.6, 0.9):
        wanted = nearest_alive(UNITS, shapes, round((1 - sparsity) * num_alive(full_mask(network))), units)
        step = prune_structured(network.state_dict(), mask, UNITS, num_alive=wanted, units=units)
        assert all(bool((step[name] <= mask[name]).all()) for name in mask)
        assert num_alive(step) == wanted
        mask = step


def test_a_sparsity_that_units_cannot_have_names_the_nearest():
    network, x, spec = make("vit")
    mask = full_mask(network)
    shapes = {name: tuple(alive.shape) for name, alive in mask.items()}
    units = removable_units(network, spec, x, mask)
    assert [group.name for group in units] == ["blocks.0.fc1", "blocks.1.fc1"], "heads, and what a norm mixes, stay"
    with pytest.raises(ValueError, match=r"^0.9 is no sparsity that whole units can have here: the nearest are 0\.\d+$"):
        landing_alive(UNITS, shapes, 0.9, units)


@pytest.mark.parametrize(
    ("network", "x", "expected"),
    [
        (Mixed(nn.LayerNorm), torch.zeros(4, 6), {"b"}),
        (Mixed(lambda size: nn.GroupNorm(1, size)), torch.zeros(4, 6), {"b"}),
        (Mixed(nn.RMSNorm), torch.zeros(4, 6), {"b"}),
        (Mixed(nn.BatchNorm1d), torch.zeros(4, 6), {"a", "b"}),
        (Depthwise(), torch.zeros(4, 3, 6, 6), {"a", "b"}),
        (Transformer("separate"), torch.zeros(4, 4, 5), {"gate"}),
    ],
    ids=["layer norm", "group norm", "root mean square", "batch norm", "depthwise", "attention"],
)
def test_units_that_others_depend_on_are_not_removed(network, x, expected):
    before = copy.deepcopy(network.state_dict())
    assert {group.name for group in unit_groups(network, derive_spec(network, x), x)} == expected
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_stream_stays_whole_where_a_shortcut_that_is_not_pruned_holds_it():
    network, x, spec = make("resnet20")
    found = {group.name for group in removable_units(network, spec, x, full_mask(network))}
    assert found == {name for name in spec.groups if name.endswith(".conv1")} - {"conv1"}
    assert len(removable_units(network, spec, x, full_mask(network, prune_shortcuts=True))) == len(spec.groups)


@pytest.mark.parametrize("name", ["mlp", "resnet20", "vgg11", "depthwise"])
def test_a_mask_without_a_pattern_loses_the_units_that_it_has_killed(name):
    network, x, _ = make(name)
    mask = prune_global_magnitude(network.state_dict(), full_mask(network), fraction=0.985)
    small = assert_same_function(network, mask, x)
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in network.parameters())


def two_layers(bias, **options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, bias=bias, **options), nn.Flatten())
    mask = full_mask(network)
    mask["0.weight"][1] = False
    return network, mask, torch.randn(4, 2, 5, 5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("constant", [0.7, -0.7])
def test_a_unit_that_nothing_writes_leaves_its_constant_in_the_next_bias(bias, constant):
    network, mask, x = two_layers(bias)
    with torch.no_grad():
        network[0].bias[1] = constant  # behind ReLU 0.7 or 0
    small = assert_same_function(network, mask, x)
    assert (small[0].out_channels, small[2].in_channels) == (2, 2)
    assert (small[2].bias is not None) == (bias or constant > 0)


def test_a_constant_that_a_border_of_zeros_interrupts_stays_where_it_is():
    network, mask, x = two_layers(True, padding=1)
    with torch.no_grad():
        network[0].bias[1] = 0.7
    assert compact(network, mask, x)[0].out_channels == 3
    with torch.no_grad():
        network[0].bias[1] = -0.7
    assert assert_same_function(network, mask, x)[0].out_channels == 2


def test_removal_goes_on_through_the_layers_before_and_one_unit_stays():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    mask, x = full_mask(network), torch.randn(6, 3)
    mask["4.weight"][:, 1:] = False
    mask["2.weight"][0, 2] = False
    small = compact(network, mask, x)
    assert [small[place].out_features for place in (0, 2)] == [4, 1], "unit 2 of the first layer was read by removed ones"
    mask["4.weight"][:] = False
    small = assert_same_function(network, mask, x)
    assert [small[place].out_features for place in (0, 2)] == [1, 1]


def test_a_network_that_casts_its_input_is_compared_in_that_precision():
    torch.manual_seed(0)
    network, x = CastsInside(), torch.randn(16, 6)
    mask = full_mask(network)
    mask["a.weight"][:4] = False
    small = compact(network, mask, x)
    assert small.a.out_features == 4
    torch.testing.assert_close(small(x), masked(network, mask)(x), rtol=0, atol=1e-6)


def test_a_network_with_sizes_of_its_own_is_refused_in_one_line():
    torch.manual_seed(0)
    network, x = FixedSizes(), torch.randn(4, 3, 8, 8)
    everything = full_mask(network)
    units = removable_units(network, derive_spec(network, x), x, everything)
    shapes = {name: tuple(alive.shape) for name, alive in everything.items()}
    wanted = nearest_alive(UNITS, shapes, num_alive(everything) // 2, units)
    mask = prune_structured(network.state_dict(), everything, UNITS, num_alive=wanted, units=units)
    with pytest.raises(ValueError, match=r"^the smaller network does not run .*reshape.*sizes of its own$") as caught:
        compact(network, mask, x)
    assert "\n" not in str(caught.value)


def test_steps_of_the_smaller_network_are_those_of_the_masked_one():
    """With momentum and weight decay, in float64."""
    network, x, spec = make("resnet20")
    network, x, y = network.double(), x.double(), torch.arange(16) % 10
    everything = full_mask(network, prune_shortcuts=True)
    units = removable_units(network, spec, x, everything)
    shapes = {name: tuple(alive.shape) for name, alive in everything.items()}
    wanted = nearest_alive(UNITS, shapes, num_alive(everything) // 2, units)
    mask = prune_structured(network.state_dict(), everything, UNITS, num_alive=wanted, units=units)
    assert mask_sparsity(mask) > 0.4
    small, whole = compact(network, mask, x, spec=spec).train(), masked(network, mask).train()
    losses = []
    for each in (whole, small):
        rule = torch.optim.SGD(each.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        losses.append([])
        for _ in range(4):
            rule.zero_grad()
            loss = F.cross_entropy(each(x), y)
            loss.backward()
            rule.step()
            with torch.no_grad():
                for name, weight in each.named_parameters():
                    if each is whole and name in mask:
                        weight *= mask[name]
            losses[-1].append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] != pytest.approx(losses[0][0], rel=1e-3)
