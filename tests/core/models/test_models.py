import pytest
import torch
from torch import nn

from raylth.common.registry import UnknownName
from raylth.core.models import build_model, init_model


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


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "mlp"])
def test_torchs_own_initialisation_is_what_its_layers_draw(name):
    shape = (40,) if name == "mlp" else (3, 32, 32)
    settings = {"width": 0.25, "num_classes": 10, "in_shape": shape}
    own, drawn, again = (init_model(3, name, **settings, init=init) for init in ("own", "torch", "torch"))
    for module, same in zip(drawn.modules(), again.modules(), strict=True):
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / module.weight[0].numel() ** 0.5
            assert torch.equal(module.weight, same.weight)
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound * 1.001, (
                "uniform, by the number of inputs"
            )
            if module.bias is not None:
                assert 0 < float(module.bias.detach().abs().max()) <= bound * 1.001
    first, other = (next(p for p in network.parameters() if p.ndim > 1).detach() for network in (own, drawn))
    assert float(first.std() / other.std()) == pytest.approx(6**0.5, rel=0.25), "He's deviation is 2.45 times torch's"
    with pytest.raises(ValueError, match=r"init: 'he' is none of own, torch"):
        init_model(3, name, **settings, init="he")
