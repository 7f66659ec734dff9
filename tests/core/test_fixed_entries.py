"""Networks without symmetry: what is fixed, that it stays so, and that no two units can be exchanged."""

import copy
import math

import pytest
import torch
from torch import nn

from raylth.core.fixed_entries import FixedEntries, FixedLayer, fix_entries, has_fixed_entries
from raylth.core.masks import full_mask, num_alive, prunable_names, shuffle_mask
from raylth.core.models import build_shapes, init_model
from raylth.core.permutation import derive_spec, identity_permutation, random_permutation
from raylth.core.pruning import prune_global_magnitude
from raylth.core.pruning.at_initialisation import snip_scores, synflow_scores
from raylth.core.repair import repair_sites, site_statistics
from raylth.core.training.loop import Recipe, train
from tests.core.training.test_loop import random_split

SHAPES = {"mlp": (40,), "resnet20": (1, 8, 8), "vgg11": (3, 32, 32)}
WIDTHS = {"mlp": 0.25, "resnet20": 0.5, "vgg11": 0.125}


def build(name="mlp", seed=0, **options):
    settings = {"width": WIDTHS[name], "num_classes": 10, "in_shape": SHAPES[name]}
    return init_model(seed, name, **settings, options={"asymmetric": True, **options})


def plain(name="mlp", seed=0):
    return init_model(seed, name, width=WIDTHS[name], num_classes=10, in_shape=SHAPES[name])


def layers(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, FixedLayer)}


@pytest.mark.parametrize("name", SHAPES)
def test_the_rows_of_every_layer_have_fixed_entries_of_their_own(name):
    network = build(name)
    assert len(layers(network)) == sum(isinstance(module, nn.Linear | nn.Conv2d) for module in plain(name).modules())
    for layer in layers(network).values():
        places = layer.fixed.places.flatten(1)
        counts = set(places.sum(1).tolist())
        assert len(counts) == 1, "as many in every row"
        assert counts.pop() >= max(1, round(places.shape[1] / 8))
        assert len(set(map(tuple, places.tolist()))) == len(places), "no two rows have the same"
        assert not layer.weight[layer.fixed.places].any()
        assert (layer.weight != 0).sum() == (~layer.fixed.places).sum()


def test_a_narrow_layer_has_as_many_as_its_rows_need_to_differ():
    network = init_model(0, "resnet20", num_classes=10, in_shape=(1, 8, 8), options={"asymmetric": True})
    assert network.conv1.fixed.places[0].sum() == 2, "an eighth of 9 inputs is 1, which 16 rows cannot share"
    all_of_them = nn.Sequential(
        nn.Linear(6, 15)
    )  # as many rows as there are sets of 2 of 6: those drawn again are passed over
    fix_entries(all_of_them, share=1 / 3)
    assert len(set(map(tuple, all_of_them[0].fixed.places.tolist()))) == 15
    with pytest.raises(ValueError, match=r"1: no 8 different sets of 2 of 4 inputs: the network is too narrow"):
        fix_entries(nn.Sequential(nn.Flatten(), nn.Linear(4, 8)))


@pytest.mark.parametrize(("share", "kappa"), [(1 / 8, 39.0), (0.5, 4.0)])
def test_a_row_has_the_variance_of_he_and_kappa_is_the_ratio_of_the_deviations(share, kappa):
    network = nn.Sequential(nn.Linear(512, 512), nn.Conv2d(64, 256, 3))
    for layer in network:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    fix_entries(network, share=share, kappa=kappa)
    for layer in network:
        fixed = layer.fixed.values[layer.fixed.places]
        free = layer.weight[~layer.fixed.places].detach()
        assert float(fixed.std() / free.std()) == pytest.approx(kappa, rel=0.02)
        row = layer.fixed(layer.weight).detach().flatten(1)
        assert float(row.square().sum(1).mean()) == pytest.approx(2.0, rel=0.02)


def test_the_defaults_are_the_ratios_of_the_authors_mlp():
    layer = layers(init_model(0, "mlp", num_classes=10, in_shape=(40,), options={"asymmetric": True}))["fc2"]
    assert layer.fixed.places.sum(1).unique().tolist() == [128 * 64 / 512]
    ratio = float(layer.fixed.values[layer.fixed.places].std() / layer.weight.detach()[~layer.fixed.places].std())
    assert ratio == pytest.approx(1 / (1 / math.sqrt(3 * 512)), rel=0.03)


def test_what_is_fixed_belongs_to_the_architecture():
    """Equal for A and B, whatever torch draws; other in each layer; no state dict holds it, so its values are pinned."""
    one, other = build(seed=0), build(seed=1)
    for name, layer in layers(one).items():
        same = layers(other)[name].fixed
        assert torch.equal(layer.fixed.places, same.places)
        assert torch.equal(layer.fixed.values, same.values)
    assert not torch.equal(one.fc2.fixed.places, one.fc3.fixed.places)
    assert not torch.equal(one.fc2.weight, other.fc2.weight)
    assert {name: tensor.shape for name, tensor in one.state_dict().items()} == {
        name: tensor.shape for name, tensor in plain().state_dict().items()
    }
    assert one.fc1.fixed.places[0].nonzero().flatten().tolist() == PLACES
    assert one.fc1.fixed.values[0][one.fc1.fixed.places[0]].tolist() == pytest.approx(VALUES, rel=1e-5)
    network, before = plain(), torch.random.get_rng_state()
    fix_entries(network)
    assert torch.equal(torch.random.get_rng_state(), before)


PLACES = [13, 20, 23, 35, 37]  # of the first row of fc1
VALUES = [0.787604, 0.0263377, -0.751807, 0.288434, 1.345205]


def test_without_the_option_nothing_is_fixed():
    off = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,), options={"asymmetric": False})
    assert not has_fixed_entries(off)
    assert all(torch.equal(tensor, off.state_dict()[name]) for name, tensor in plain().state_dict().items())
    assert derive_spec(off, torch.zeros(2, 40)).groups


@pytest.mark.parametrize("name", SHAPES)
def test_no_unit_can_be_permuted(name):
    network = build(name)
    spec = derive_spec(network, torch.zeros(2, *SHAPES[name]))
    assert not spec.groups
    assert not any(any(axes) for axes in spec.axes.values())
    assert random_permutation(spec, 0).perms == identity_permutation(spec).perms == {}


@pytest.mark.parametrize("is_asymmetric", [True, False])
def test_two_exchanged_units_are_another_function_only_where_entries_are_fixed(is_asymmetric):
    """By brute force, in float64: every pair of units of a hidden layer, with their rows, biases and columns."""
    network = (build() if is_asymmetric else plain()).double()
    x = torch.randn(20, 40, generator=torch.Generator().manual_seed(0)).double()
    state, moved = network.state_dict(), copy.deepcopy(network)
    with torch.no_grad():
        for one in range(32):
            for other in range(one):
                order = torch.arange(32)
                order[[one, other]] = order[[other, one]]
                exchanged = {
                    "fc2.weight": state["fc2.weight"][order],
                    "fc2.bias": state["fc2.bias"][order],
                    "fc3.weight": state["fc3.weight"][:, order],
                }
                moved.load_state_dict({**state, **exchanged})
                gap = float((moved(x) - network(x)).abs().max() / network(x).abs().max())
                assert gap > 1e-7 if is_asymmetric else gap < 1e-12, (one, other, gap)


def test_fixed_entries_stay_and_are_pruned_first():
    """Under momentum and weight decay; the network trains all the same, and its masks keep free weights only."""
    network = build("resnet20")
    start = copy.deepcopy(network)
    losses = train(network, random_split((1, 8, 8), 100), Recipe(3, lr=0.02, batch_size=20, weight_decay=0.1), seed=0)
    assert losses[-1] < losses[0]
    share = sum(int(layer.fixed.places.sum()) for layer in layers(network).values()) / sum(
        layer.weight.numel() for layer in layers(network).values()
    )
    for name, layer in layers(network).items():
        assert not layer.weight[layer.fixed.places].any()
        assert torch.equal(layer.fixed.values, layers(start)[name].fixed.values)
        assert not torch.equal(layer.weight, layers(start)[name].weight)
    mask = prune_global_magnitude(network.state_dict(), full_mask(network), fraction=share)
    for name, layer in layers(network).items():
        if f"{name}.weight" in mask:
            assert not (mask[f"{name}.weight"] & layer.fixed.places).any()
    random = shuffle_mask(mask, 0)
    assert num_alive(random) == num_alive(mask)
    assert any(
        (random[f"{n}.weight"] & layer.fixed.places).any() for n, layer in layers(network).items() if f"{n}.weight" in mask
    )


def test_the_layers_are_known_as_what_they_are():
    for name in SHAPES:
        assert prunable_names(build(name)) == prunable_names(plain(name)), "shortcuts among them"
    shapes = build_shapes("resnet20", num_classes=10, in_shape=(1, 8, 8), options={"asymmetric": True})
    assert all(tensor.is_meta for tensor in (*shapes.parameters(), *shapes.buffers()))
    drawn = init_model(0, "mlp", num_classes=10, in_shape=(40,), init="torch", options={"asymmetric": True})
    assert 0.9 / 128**0.5 < float(drawn.fc2.weight.detach().abs().max()) <= 1 / 128**0.5
    assert not drawn.fc2.weight[drawn.fc2.fixed.places].any()


def test_scores_before_training_are_those_of_the_free_weights():
    network = build()
    names = list(full_mask(network))
    x, y = torch.randn(30, 40, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 10
    found = snip_scores(network, names, [(x, y)]), synflow_scores(network, full_mask(network), (40,))
    reference = plain()
    with torch.no_grad():
        for name, layer in layers(network).items():
            reference.get_submodule(name).weight.copy_(layer.fixed(layer.weight))
    expected = snip_scores(reference, names, [(x, y)]), synflow_scores(reference, full_mask(reference), (40,))
    for scores, others in zip(found, expected, strict=True):
        for name, layer in layers(network).items():
            places, score, other = layer.fixed.places, scores[f"{name}.weight"], others[f"{name}.weight"]
            assert not score[places].any()
            torch.testing.assert_close(score[~places], other[~places], rtol=1e-4, atol=1e-7)


def test_repair_refuses_what_it_cannot_rescale():
    with pytest.raises(ValueError, match=r"fc1 has fixed entries, which REPAIR cannot rescale"):
        site_statistics(build(), [torch.zeros(4, 40)])
    assert repair_sites(build("resnet20"), torch.zeros(2, 1, 8, 8)) == repair_sites(
        plain("resnet20"), torch.zeros(2, 1, 8, 8)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed": 0}, "fixed must be a share above 0 and below 1, not 0"),
        ({"fixed": 1.0}, "fixed must be a share above 0 and below 1, not 1.0"),
        ({"fixed": "1/8"}, "fixed must be a number, not '1/8'"),
        ({"kappa": -1}, "kappa must be a finite number above 0, not -1"),
        ({"kappa": float("inf")}, "kappa must be a finite number above 0"),
        ({"asymmetric": 1}, "asymmetric must be true or false, not 1"),
        ({"asymmetric": False, "kappa": 2}, "set asymmetric: true"),
        ({"fixd": 0.5}, "did you mean 'fixed'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build("mlp", **options)


def test_stacked_weights_have_the_same_entries_fixed():
    fixed = FixedEntries(torch.tensor([[True, False]]), torch.tensor([[5.0, 6.0]]))
    assert torch.equal(fixed(torch.arange(4.0).view(2, 1, 2)), torch.tensor([[[5.0, 1.0]], [[5.0, 3.0]]]))
