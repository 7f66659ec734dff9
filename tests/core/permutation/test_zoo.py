"""The symmetry of networks that were not written for this package, straight from torchvision, and of random ones."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision import models

from raylth.core.batchnorm import reset_bn_stats
from raylth.core.matching import match_activations
from raylth.core.matching.weight import match_weights
from raylth.core.modes import freeze_dropout
from raylth.core.permutation import identity_permutation, random_permutation
from raylth.core.permutation.derive import derive_spec

ZOO = {  # name -> groups that are expected
    "resnet18": 12, "resnet50": 37, "wide_resnet50_2": 37, "resnext50_32x4d": 53, "vgg11": 10, "vgg16_bn": 15,
    "densenet121": 120, "mobilenet_v2": 25, "mobilenet_v3_small": 27, "efficientnet_b0": 40, "googlenet": 57,
    "convnext_tiny": 22, "shufflenet_v2_x0_5": 30, "regnet_y_400mf": 69,
}  # fmt: skip


class Narrow(nn.Linear):
    """A linear layer with 64 units where it would have 4096, as in the classifiers of VGG."""

    def __init__(self, inputs, outputs):
        super().__init__(*(64 if units == 4096 else units for units in (inputs, outputs)))


def build(name, **options):
    """A network of torchvision; VGG's classifier is narrow: nine tenths of its 138 million weights would be there."""
    with pytest.MonkeyPatch.context() as patch:
        if name.startswith("vgg"):
            patch.setattr(models.vgg.nn, "Linear", Narrow)
        network = getattr(models, name)(weights=None, **({"init_weights": False} if name == "googlenet" else {}), **options)
    for module in network.modules():
        if isinstance(module, Narrow):
            module.__class__ = nn.Linear
    return network


def outputs(model, x):
    found = model(x)
    return found if isinstance(found, torch.Tensor) else torch.cat(list(found))


def assert_same_function(model, moved, x, training):
    for network in (model, moved):
        freeze_dropout(network.train(training))
    with torch.no_grad():
        expected, found = outputs(model, x), outputs(moved, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-4 * float(expected.abs().max()))


def shaken(model):
    """Give batch norms and layer scales values of their own, so that a wrong axis shows."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
            if name.endswith("layer_scale"):
                tensor.copy_(torch.rand_like(tensor))
    return model


@pytest.mark.parametrize("name", ZOO)
def test_a_random_permutation_of_every_group_leaves_the_function(name):
    torch.manual_seed(0)
    model = shaken(build(name))
    x = torch.randn(4, 3, 40, 40)  # maps of 2 x 2 at the end
    spec = derive_spec(model, x[:2])
    assert len(spec.groups) == ZOO[name]
    planted = random_permutation(spec, 1)
    state = model.state_dict()
    moved_state = planted.apply(state)
    moved = copy.deepcopy(model)
    moved.load_state_dict(moved_state)
    assert sum(not torch.equal(state[key], moved_state[key]) for key in state) > 0.5 * len(list(model.parameters()))
    back = planted.inverse().apply(moved_state)
    assert all(torch.equal(state[key], back[key]) for key in state)
    assert_same_function(model, moved, x, training=False)
    assert_same_function(model, moved, x, training=True)


@pytest.mark.parametrize("matcher", ["activation", "weight"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "efficientnet_b0"])
def test_a_planted_permutation_of_a_noisy_copy_is_found(name, matcher):
    torch.manual_seed(0)
    model = shaken(build(name, num_classes=10))
    x = torch.randn(64, 3, 64, 64)
    reset_bn_stats(model, x.split(32))
    spec = derive_spec(model, x[:2])
    planted = random_permutation(spec, 2)
    copied = copy.deepcopy(model)
    copied.load_state_dict(planted.apply(model.state_dict()))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.01 * parameter.std(correction=0) * torch.randn_like(parameter))
    if matcher == "activation":
        found = match_activations(model, copied, spec, x.split(32)).permutation
    else:
        found = match_weights(model.state_dict(), copied.state_dict(), spec, 0).permutation
    missed = {group: share for group, share in found.distance(planted).items() if share}
    assert not missed


def test_a_permutation_that_is_wrong_in_one_group_is_seen():
    """The property test has teeth: moving one axis of one tensor alone changes the function."""
    torch.manual_seed(0)
    model = shaken(models.resnet18(weights=None)).eval()
    x = torch.randn(2, 3, 64, 64)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.layer2[0].bn1.weight.copy_(model.layer2[0].bn1.weight.flip(0))
    with pytest.raises(AssertionError):
        assert_same_function(model, moved, x, training=False)


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class RandomNetwork(nn.Module):
    """Blocks drawn by hypothesis, one after the other."""

    def __init__(self, blocks, channels, flatten):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.kinds, self.blocks = blocks, nn.ModuleList()
        for kind in blocks:
            out = 2 * channels if kind == "concat" else channels
            self.blocks.append(self.block(kind, channels))
            channels = out
        self.norm = nn.GroupNorm(1, channels)
        self.flatten = flatten
        self.head = nn.Linear(channels * (16 if flatten else 1), 5)

    @staticmethod
    def block(kind, c):
        return {
            "plain": lambda: nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU()),
            "residual": lambda: nn.Sequential(nn.Conv2d(c, 6, 1), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, c, 1)),
            "depthwise": lambda: nn.Sequential(nn.Conv2d(c, c, 3, padding=1, groups=c), nn.ReLU()),
            "grouped": lambda: nn.Sequential(nn.Conv2d(c, c, 3, padding=1, groups=2), nn.GELU()),
            "groupnorm": lambda: nn.Sequential(nn.Conv2d(c, c, 1), nn.GroupNorm(2, c), nn.Tanh()),
            "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(c, c, 3, padding=1, groups=2), nn.ReLU()),
            "gate": lambda: Gate(c),
            "concat": lambda: nn.Conv2d(c, c, 1),
            "shared": lambda: nn.Conv2d(c, c, 3, padding=1),
        }[kind]()

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            if kind == "residual":
                x = torch.relu(x + block(x))
            elif kind == "concat":
                x = torch.cat([x, block(x)], dim=1)
            elif kind == "shared":
                x = block(torch.relu(block(x)))
            else:
                x = block(x)
        x = self.norm(x)
        x = torch.flatten(x, 1) if self.flatten else x.mean(dim=[2, 3])
        return self.head(x)


KINDS = ["plain", "residual", "depthwise", "grouped", "groupnorm", "transposed", "gate", "concat", "shared"]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(KINDS), max_size=5), st.sampled_from([4, 8]), st.booleans(), st.integers(0, 3))
def test_random_networks_keep_their_function(blocks, channels, flatten, seed):
    torch.manual_seed(seed)
    model = shaken(RandomNetwork(blocks, channels, flatten))
    x = torch.randn(6, 3, 4, 4)
    spec = derive_spec(model, x)
    assert spec.groups, "the stem's channels can always move"
    moved = copy.deepcopy(model)
    moved.load_state_dict(random_permutation(spec, seed).apply(model.state_dict()))
    assert_same_function(model, moved, x, training=False)
    assert_same_function(model, moved, x, training=True)
    same = identity_permutation(spec).apply(model.state_dict())
    assert all(torch.equal(same[name], tensor) for name, tensor in model.state_dict().items())


def test_a_grouped_convolution_moves_whole_groups_and_channels_inside_each():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    groups = derive_spec(model, torch.zeros(2, 3, 2, 2)).groups
    assert {name: (group.size, group.within) for name, group in groups.items()} == {
        "0": (2, ()), "0/1": (8, ("0",)), "2/1": (4, ("0",)),
    }  # fmt: skip


class Cut(nn.Module):
    """Cuts units in the middle of a block that a group norm keeps together."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 6)
        self.norm = nn.GroupNorm(2, 6)

    def forward(self, x):
        return torch.relu(self.norm(self.c(x)) + torch.cat([self.a(x), self.b(x)], dim=1)).sum(1)


def test_units_that_are_cut_in_the_middle_of_a_block_stay():
    torch.manual_seed(0)
    model, x = shaken(Cut()), torch.randn(6, 4)
    spec = derive_spec(model, x)
    moved = copy.deepcopy(model)
    moved.load_state_dict(random_permutation(spec, 3).apply(model.state_dict()))
    assert_same_function(model, moved, x, training=False)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_forward_pass_that_depends_on_the_data_stops_with_its_place():
    with pytest.raises(ValueError, match=r"cannot be exported: control flow that depends on the data .*test_zoo.py"):
        derive_spec(Branch(), torch.zeros(2, 4))
