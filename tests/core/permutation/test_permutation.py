import copy

import pytest
import torch
from torch import nn

from raylth.core.masks import full_mask, num_alive
from raylth.core.models import init_model
from raylth.core.permutation import (
    Permutation,
    UnknownOperation,
    derive_spec,
    identity_permutation,
    random_permutation,
)
from raylth.core.pruning import prune_global_magnitude
from raylth.core.tensors import tied_names
from tests.core import own_networks as own


def make(network_settings, seed=0):
    """A network with non-trivial batch-norm statistics, its spec and an input batch."""
    torch.manual_seed(seed)
    model = init_model(seed, **network_settings)
    x = torch.randn(16, *network_settings["in_shape"], generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        model.train()(x)
    return model, derive_spec(model, x), x


@pytest.mark.parametrize("training", [True, False])
def test_a_permuted_network_computes_the_same_function(network_settings, training):
    model, spec, x = make(network_settings)
    moved = copy.deepcopy(model)
    moved.load_state_dict(random_permutation(spec, 1).apply(model.state_dict()))
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), moved.parameters(), strict=True))
    with torch.no_grad():
        expected, found = model.train(training)(x), moved.train(training)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_every_hidden_axis_belongs_to_a_group(network_settings):
    model, spec, _ = make(network_settings)
    for name, parameter in model.named_parameters():
        fixed = [dim for dim in range(min(2, parameter.ndim)) if spec.axes[name][dim] is None]
        first = name == next(iter(dict(model.named_parameters()))) or name == "features.0.weight"
        expected = ([0] if name.startswith("head") else []) + ([1] if first and parameter.ndim > 1 else [])
        assert fixed == expected, name


def test_algebra_holds_bit_for_bit(network_settings):
    model, spec, _ = make(network_settings)
    state = model.state_dict()
    p, q = random_permutation(spec, 1), random_permutation(spec, 2)

    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in state)

    assert same(p.inverse().apply(p.apply(state)), state)
    assert same(p.compose(q).apply(state), p.apply(q.apply(state)))
    assert same(identity_permutation(spec).apply(state), state)
    assert not same(p.apply(state), state)


def test_a_mask_moves_with_its_weights(network_settings):
    model, spec, _ = make(network_settings)
    state, p = model.state_dict(), random_permutation(spec, 3)
    mask = prune_global_magnitude(state, full_mask(model), fraction=0.6)
    moved, moved_mask = p.apply(state), p.apply_mask(mask)
    for name in mask:
        assert num_alive({name: mask[name]}) == num_alive({name: moved_mask[name]})
        zeroed = torch.where(mask[name], state[name], 0.0)
        assert torch.equal(p.apply({name: zeroed})[name], torch.where(moved_mask[name], moved[name], 0.0))


def test_direction_is_the_unit_of_a_at_position_i_of_b():
    model = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,))
    spec = derive_spec(model, torch.zeros(2, 40))
    perm = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    p = Permutation(spec, {**identity_permutation(spec).perms, "fc1": perm})
    weight = model.state_dict()["fc1.weight"]
    assert torch.equal(p.apply(model.state_dict())["fc1.weight"], weight[perm])


def test_a_residual_stream_is_one_group_watched_at_its_last_block():
    model = init_model(0, "resnet20", num_classes=10, in_shape=(3, 16, 16))
    groups = derive_spec(model, torch.zeros(2, 3, 16, 16)).groups
    assert len(groups) == 12  # 3 streams and the inner layer of 9 blocks
    streams = [group for name, group in groups.items() if not name.endswith(".conv1") or name == "conv1"]
    assert [(group.size, group.site.node) for group in streams] == [(16, "relu__6"), (32, "relu__12"), (64, "relu__18")]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 6, 1), nn.FractionalMaxPool2d(2, 2), nn.Conv2d(6, 2, 1)), "fractional_max_pool2d"),
        (nn.Sequential(nn.Conv2d(3, 6, 1), nn.Unfold(2), nn.Conv1d(24, 2, 1)), "im2col"),
    ],
)
def test_an_unknown_operation_is_never_guessed(module, message):
    with pytest.raises(UnknownOperation, match=message):
        derive_spec(module, torch.zeros(1, 3, 4, 4))


def test_broken_permutations_are_refused(network_settings):
    _, spec, _ = make(network_settings)
    perms = dict(identity_permutation(spec).perms)
    group = next(iter(perms))
    with pytest.raises(ValueError, match="not a permutation"):
        Permutation(spec, {**perms, group: torch.zeros_like(perms[group])})
    del perms[group]
    with pytest.raises(ValueError, match=group):
        Permutation(spec, perms)


def test_distance_and_fixed_share_count_units_that_move(network_settings):
    _, spec, _ = make(network_settings)
    identity, p = identity_permutation(spec), random_permutation(spec, 1)
    assert set(identity.fixed_share().values()) == {1.0}
    assert set(p.distance(p).values()) == {0.0}
    for name, perm in p.perms.items():
        moved = sum(int(place != unit) for place, unit in enumerate(perm.tolist())) / len(perm)
        assert p.distance(identity)[name] == pytest.approx(moved)
        assert p.fixed_share()[name] == pytest.approx(1 - moved)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_continues_after_its_network_was_permuted(network_settings, optimizer):
    """A step of the permuted network with the permuted optimizer is the permutation of the step."""
    model, spec, x = make(network_settings)
    model, x = model.double(), x.double()  # in float32 Adam makes much of a small gradient's rounding
    y = torch.arange(len(x)) % 10
    options = {"lr": 0.01, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {"eps": 1e-2})}

    def step(network, rule):
        rule.zero_grad()
        nn.functional.cross_entropy(network.eval()(x), y).backward()
        rule.step()

    rule = optimizer(model.parameters(), **options)
    step(model, rule)
    p = random_permutation(spec, 1)
    moved = copy.deepcopy(model)
    moved.load_state_dict(p.apply(model.state_dict()))
    moved_rule = optimizer(moved.parameters(), **options)
    moved_rule.load_state_dict(p.apply_optimizer(rule.state_dict(), [name for name, _ in model.named_parameters()]))
    for buffers in zip(rule.state.values(), moved_rule.state.values(), strict=True):
        assert buffers[0].keys() == buffers[1].keys()
    step(model, rule)
    step(moved, moved_rule)
    expected = p.apply(model.state_dict())
    for name, tensor in moved.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-8, msg=name)
    with pytest.raises(ValueError, match="names were given"):
        p.apply_optimizer(rule.state_dict(), ["one"])


@pytest.mark.parametrize("make", [own.SharedModule, own.SharedWeight, own.SharedAcrossList])
def test_tied_weights_move_as_one(make):
    """Whichever name a program reads them by."""
    torch.manual_seed(0)
    model, x = make(), torch.randn(16, own.IN)
    spec = derive_spec(model, x)
    assert set(spec.tied) == set(tied_names(model)) != set()
    moved = make()
    state = random_permutation(spec, 1).apply(model.state_dict())
    for name, first in tied_names(model).items():
        assert torch.equal(state[name], state[first])
    assert any(not torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    moved.load_state_dict(state)
    torch.testing.assert_close(moved(x), model(x))


@pytest.mark.parametrize("make", [own.SharedMemory, own.SharedView, own.WeightNorm, own.Pruned])
def test_tensors_that_cannot_be_permuted_one_by_one_are_refused(make):
    with pytest.raises(ValueError, match=r"one tensor under two names|parametrized|computed from other tensors"):
        derive_spec(make(), torch.zeros(2, own.IN))


@pytest.mark.parametrize(
    "norm",
    [own.OwnNorm, own.OwnNormWithInit, own.NormAndActivation, nn.SyncBatchNorm, nn.RMSNorm, nn.LayerNorm],
)
def test_norms_and_layers_of_ones_own_keep_their_parents_rule(norm):
    torch.manual_seed(0)
    model, x = own.Normalised(norm), torch.randn(16, own.IN)
    with torch.no_grad():
        for tensor in model.norm.parameters():
            tensor.uniform_(0.5, 1.5)
    model.train()(x)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spec = derive_spec(model, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "tracing changes nothing"
    assert {name: group.size for name, group in spec.groups.items()} == {"fc1": own.HIDDEN, "fc2": own.HIDDEN}
    moved = copy.deepcopy(model)
    moved.load_state_dict(random_permutation(spec, 1).apply(model.state_dict()))
    for training in (False, True):
        torch.testing.assert_close(moved.train(training)(x), model.train(training)(x), rtol=1e-4, atol=1e-5)


def test_a_subclass_that_computes_something_else_is_looked_into():
    class Scaled(nn.Linear):
        def forward(self, x):
            return torch.special.i0(super().forward(x))

    with pytest.raises(UnknownOperation, match="i0"):
        derive_spec(nn.Sequential(Scaled(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(2, 4))


def test_options_of_forward_have_their_defaults():
    spec = derive_spec(own.Options(), torch.zeros(2, own.IN))
    assert set(spec.groups) == {"fc1", "fc2"}


def test_a_library_has_no_lines_of_torch_in_its_place(monkeypatch):
    """torchvision lies beside torch, and begins with its name."""
    from torchvision.models import vit_b_16

    from raylth.core.permutation.follow import RULES

    monkeypatch.delitem(RULES, "aten.expand")
    with pytest.raises(UnknownOperation, match=r"expand.*vision_transformer.py"):
        derive_spec(vit_b_16(image_size=32), torch.zeros(2, 3, 32, 32))
