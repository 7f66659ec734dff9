"""Matching from weights, and learned matching: planted permutations, monotone objective, honest errors."""

import copy

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from raylth.common.seeding import derive_seed
from raylth.core.data import load_dataset
from raylth.core.matching import match_activations, weight
from raylth.core.matching.straight_through import _mean_loss, match_straight_through
from raylth.core.matching.units import STATISTICS
from raylth.core.matching.weight import match_weights
from raylth.core.models import init_model
from raylth.core.permutation import Permutation, derive_spec, identity_permutation, random_permutation
from raylth.core.training.loop import Recipe, train
from raylth.stages import make_context
from raylth.store import Store
from tests.conftest import NETWORKS
from tests.core.permutation.test_zoo import RandomNetwork, shaken


def inner_product(state_a, state_b, permutation):
    moved = permutation.apply(state_a)
    return sum(
        float((moved[name] * tensor).sum(dtype=torch.float64))
        for name, tensor in state_b.items()
        if tensor.is_floating_point() and not name.endswith(("running_mean", "running_var"))
    )


def noisy_copy(state, planted, noise):
    """pi(state) with relative noise on every tensor."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: tensor + noise * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in planted.apply(state).items()
    }


def planted_case(network_settings, noise=0.2):
    model_a = init_model(1, **network_settings)
    x = torch.randn(64, *network_settings["in_shape"], generator=torch.Generator().manual_seed(0))
    spec = derive_spec(model_a, x[:2])
    planted = random_permutation(spec, 5)
    model_b = copy.deepcopy(model_a)
    model_b.load_state_dict(noisy_copy(model_a.state_dict(), planted, noise))
    return model_a, model_b, spec, planted, x


def test_each_matcher_recovers_a_permutation_planted_in_a_noisy_copy(network_settings):
    model_a, model_b, spec, planted, x = planted_case(network_settings, noise=0.05)
    y = torch.randint(0, 10, (len(x),), generator=torch.Generator().manual_seed(1))
    found = {
        "weight": match_weights(model_a.state_dict(), model_b.state_dict(), spec, 0),
        "learned": match_straight_through(model_a, model_b, spec, [(x, y)], 0, epochs=1),
    }
    for method, result in found.items():
        assert max(result.permutation.distance(planted).values()) == 0, method
        assert min(result.objective.values()) > 0.95
    share = match_activations(model_a, model_b, spec, [x]).permutation.distance(planted)
    assert sum(share.values()) / len(share) < 0.35, "dead and nearly dead units aside, activations find it too"


def test_the_inner_product_never_falls_and_beats_identity_and_random(network_settings, monkeypatch):
    states = [init_model(seed, **network_settings).state_dict() for seed in (1, 2)]
    spec = derive_spec(init_model(1, **network_settings), torch.zeros(2, *network_settings["in_shape"]))
    values = []
    improve = weight._Descent.improve

    def watched(self, group):
        before = self.value()
        rose = improve(self, group)
        values.append((before, self.value(), rose))
        return rose

    monkeypatch.setattr(weight._Descent, "improve", watched)
    result = match_weights(*states, spec, 0)
    assert any(rose for _, _, rose in values)
    for before, after, rose in values:
        assert after > before if rose else after == before
    found = inner_product(*states, result.permutation)
    assert found == pytest.approx(values[-1][1], rel=1e-4), "what is reported is what the permutation gives"
    assert found > inner_product(*states, identity_permutation(spec))
    assert found > inner_product(*states, random_permutation(spec, 0))
    again = match_weights(*states, spec, 0)
    assert max(again.permutation.distance(result.permutation).values()) == 0, "one seed, one permutation"


def test_a_group_on_both_axes_of_a_tensor_is_still_monotone():
    """x + conv(x) puts the stream on both axes of one weight: a quadratic assignment, of which a step is linearised."""

    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.inner(x))

    torch.manual_seed(0)
    one, other = Stream(), Stream()
    with torch.no_grad():
        for model in (one, other):
            model.inner.weight.mul_(5)  # the quadratic part rules
    spec = derive_spec(one, torch.zeros(2, 6))
    assert [axis.parts[0].groups for axis in spec.axes["inner.weight"]] == [("stem",), ("stem",)]
    for seed in range(5):
        result = match_weights(one.state_dict(), other.state_dict(), spec, seed)
        start = inner_product(one.state_dict(), other.state_dict(), identity_permutation(spec))
        assert inner_product(one.state_dict(), other.state_dict(), result.permutation) >= start


def match_plainly(state_a, state_b, spec, seed):
    """The same descent without anything kept: A's weights are moved anew before each step, and multiplied in float64."""
    names = [name for name in spec.axes if not name.endswith(STATISTICS) and any(spec.axes[name])]
    perms = dict(identity_permutation(spec).perms)

    def moved():
        return Permutation(spec, perms).apply({name: state_a[name] for name in names})

    def value():
        return sum(float((tensor.double() * state_b[name].double()).sum()) for name, tensor in moved().items())

    def gain(group, settled=None):
        """B's units by A's as they stand, over the tensors whose other groups are settled; None where there is none."""
        total, state = None, moved()
        for name in names:
            known = {each for axis in spec.axes[name] if axis for each in axis.groups} - {group}
            for dim, axis in enumerate(spec.axes[name]):
                for part in axis.parts if axis else ():
                    if group in part.groups and (settled is None or known <= settled):
                        entries = part.led_by([group]).entries().flatten()
                        b, a = (
                            tensor.double().index_select(dim, entries).movedim(dim, 0).reshape(spec.groups[group].size, -1)
                            for tensor in (state_b[name], state[name])
                        )
                        total = b @ a.T if total is None else total + b @ a.T
        return total

    def solve(group, settled=None):
        found = gain(group, settled)
        if found is None:
            return
        columns = torch.from_numpy(linear_sum_assignment(found.numpy(), maximize=True)[1])
        before, after = float(found.trace()), float(found[torch.arange(len(found)), columns].sum())
        if settled is not None or after > before + weight.PROGRESS * max(abs(before), float(found.abs().max())):
            perms[group] = perms[group][columns]

    start, settled, before = value(), set(), dict(perms)
    for group in spec.groups:
        solve(group, settled)
        settled.add(group)
    if value() <= start:
        perms.update(before)
    generator = torch.Generator().manual_seed(derive_seed(seed, "weight_matching"))
    groups, last = list(spec.groups), None
    while last != (last := {name: perm.tolist() for name, perm in perms.items()}):
        for place in torch.randperm(len(groups), generator=generator).tolist():
            solve(groups[place])
    return Permutation(spec, perms)


def zoo_states(name, planted):
    """Two networks of torchvision, or of the blocks that join and cut units, or one and a noisy permuted copy."""
    torch.manual_seed(0)
    if name == "blocks":
        one, other = (shaken(RandomNetwork(["concat", "gate", "residual", "depthwise", "concat"], 8, True)) for _ in range(2))
    else:
        one, other = (shaken(getattr(models, name)(weights=None, num_classes=10)) for _ in range(2))
    spec = derive_spec(one, torch.zeros(2, 3, *([4, 4] if name == "blocks" else [64, 64])))
    if planted:
        return one.state_dict(), noisy_copy(one.state_dict(), random_permutation(spec, 5), 0.3), spec
    return one.state_dict(), other.state_dict(), spec


@pytest.mark.parametrize("planted", [True, False], ids=["copy", "other"])
@pytest.mark.parametrize("name", [*NETWORKS, "blocks", "resnet18", "mobilenet_v3_small"])
def test_it_finds_what_a_plain_descent_finds(name, planted):
    """Joined and concatenated units alike: the same inner product, or a higher one."""
    if name in NETWORKS:
        model_a, model_b, spec, _, _ = planted_case(NETWORKS[name])
        state_a = model_a.state_dict()
        state_b = (model_b if planted else init_model(2, **NETWORKS[name])).state_dict()
    else:
        state_a, state_b, spec = zoo_states(name, planted)
    plain = match_plainly(state_a, state_b, spec, 3)
    found = match_weights(state_a, state_b, spec, 3)
    wanted = inner_product(state_a, state_b, plain)
    assert inner_product(state_a, state_b, found.permutation) >= wanted - 1e-6 * abs(wanted)


def products_once(spec, state):
    """Operations of one product for each place of a tensor that a group owns: two for each of its weights and units."""
    total = 0
    for name, axes in spec.axes.items():
        if name.endswith(STATISTICS):
            continue
        for dim, axis in enumerate(axes):
            for part in axis.parts if axis else ():
                for group in filter(None, part.groups):
                    units = spec.groups[group].size
                    total += 2 * units * state[name].numel() * part.length // state[name].shape[dim]
    return total


def count_operations(state_a, state_b, spec, **options):
    with FlopCounterMode(display=False) as counter:
        result = match_weights(state_a, state_b, spec, 0, **options)
    return counter.get_total_flops(), result


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_each_product_is_taken_once_where_the_first_walk_is_right(name):
    state_a, state_b, spec = zoo_states(name, planted=True)
    assert count_operations(state_a, state_b, spec)[0] == products_once(spec, state_a)


def test_a_step_costs_what_its_neighbours_units_moved():
    """Near the end a few units move; a start that is right but for two of them costs little more than a right one."""
    settings = {"name": "mlp", "width": 2, "num_classes": 10, "in_shape": (40,)}
    state = init_model(1, **settings).state_dict()
    spec = derive_spec(init_model(1, **settings), torch.zeros(2, 40))
    once = products_once(spec, state)
    right = identity_permutation(spec)
    swapped = {name: perm.clone() for name, perm in right.perms.items()}
    swapped["fc2"][:2] = torch.tensor([1, 0])
    known, _ = count_operations(state, state, spec, start=right)
    nearly, result = count_operations(state, state, spec, start=Permutation(spec, swapped))
    assert known == once
    assert max(result.permutation.distance(right).values()) == 0
    assert once <= nearly < 1.05 * once
    assert count_operations(state, state, spec, start=right, max_sweeps=0)[0] == 0, "the objective needs no products"


def test_learned_matching_is_no_worse_than_weight_matching_at_the_midpoint():
    split = make_context(Store("unused"), load_dataset("mnist1d"), data_sha256="unused").train
    settings = {"name": "mlp", "width": 0.5, "num_classes": 10, "in_shape": (40,)}
    models = [init_model(seed, **settings) for seed in (1, 2)]
    for seed, model in enumerate(models):
        train(model, split, Recipe(4, lr=0.08), seed=seed)
    batches = list(split.take(2000).batches(500))
    spec = derive_spec(models[0], batches[0][0])
    states = [model.state_dict() for model in models]
    by_weight = match_weights(*states, spec, 0).permutation
    learned = match_straight_through(*models, spec, batches, 0, epochs=4).permutation
    losses = [_mean_loss(models[1], *states, permutation, batches) for permutation in (by_weight, learned)]
    assert losses[1] < losses[0]
    assert all(
        torch.equal(model.state_dict()[name], state[name])
        for model, state in zip(models, states, strict=True)
        for name in state
    )


def test_bad_input_is_named():
    settings = {"name": "mlp", "width": 0.25, "num_classes": 10, "in_shape": (40,)}
    model = init_model(1, **settings)
    state, spec = model.state_dict(), derive_spec(model, torch.zeros(2, 40))
    broken = {**state, "fc2.weight": torch.full_like(state["fc2.weight"], float("nan"))}
    with pytest.raises(ValueError, match=r"fc2.weight: weights of B are NaN"):
        match_weights(state, broken, spec, 0)
    with pytest.raises(ValueError, match=r"fc1.weight: axis 0 has 64 entries, its groups need 32"):
        match_weights(state, init_model(1, **{**settings, "width": 0.5}).state_dict(), spec, 0)
    with pytest.raises(ValueError, match="another architecture"):
        match_weights(state, nn.Linear(40, 10).state_dict(), spec, 0)
    with pytest.raises(ValueError, match="no samples"):
        match_straight_through(model, model, spec, [], 0)
