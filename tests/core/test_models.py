import pytest
import torch

from raylth.core.models import build_model, init_model
from raylth.registry import UnknownName


def test_shapes(network_settings):
    model = init_model(0, **network_settings)
    assert model(torch.zeros(2, *network_settings["in_shape"])).shape == (2, 10)


def test_a_seed_is_an_initialisation_and_leaves_the_global_state(network_settings):
    before = torch.random.get_rng_state()
    one, same, other = (init_model(seed, **network_settings).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_width_scales_every_channel_of_every_network():
    vgg = build_model("vgg11", width=2, num_classes=10, in_shape=(3, 32, 32))  # the published code ignores it
    assert vgg.features[0].out_channels == 128
    assert vgg.head.in_features == 1024
    resnet = build_model("resnet20", width=4, num_classes=100, in_shape=(3, 32, 32))
    assert resnet.head.in_features == 256
    assert resnet.layer2[0].shortcut[0].kernel_size == (3, 3)
    assert build_model("mlp", width=1, num_classes=10, in_shape=(40,)).fc1.out_features == 128


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet21"}, "did you mean 'resnet20'"),
        ({"name": "mlp", "width": 0.3}, "38.4 channels"),
        ({"name": "mlp", "width": -1}, "positive"),
        ({"name": "vgg11"}, r"at least \(C, 32, 32\)"),
        ({"name": "resnet20"}, r"\(C, H, W\)"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises((ValueError, UnknownName), match=message):
        build_model(**{"width": 1, "num_classes": 10, "in_shape": (40,), **settings})
