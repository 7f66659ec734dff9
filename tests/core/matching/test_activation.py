"""Matching against a slow reference: one pass per site over all data, in float64, with hooks on the modules."""

import copy
import weakref

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import fx, nn

from raylth.core.exporting import export
from raylth.core.matching.activation import CrossMoments, match_activations
from raylth.core.models import init_model
from raylth.core.permutation import derive_spec, random_permutation

PROGRAMS: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()  # exporting one takes half a second


def units_at(model: nn.Module, site: str, x: torch.Tensor) -> np.ndarray:
    """All units at one node of the program, (n, C) float64, from an interpreter that runs all of it node by node."""

    class Keep(fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            if node.name == site:
                self.kept = value.clone()  # what follows may overwrite it
            return value

    programs = PROGRAMS.setdefault(model, {})
    if x.shape not in programs:
        programs[x.shape] = export(model, x).module()
    interpreter = Keep(programs[x.shape])
    with torch.no_grad():
        interpreter.run(x)
    units = interpreter.kept.double()
    return units.movedim(1, -1).flatten(0, -2).numpy() if units.ndim > 2 else units.numpy()


def reference(model_a, model_b, spec, x):
    """The best assignment per group, and which units of A and of B are alive."""
    perms, alive = {}, {}
    for name, group in spec.groups.items():
        a, b = units_at(model_a, group.site.node, x), units_at(model_b, group.site.node, x)
        a, b = a - a.mean(0), b - b.mean(0)
        scale = np.outer(np.sqrt((b**2).sum(0)), np.sqrt((a**2).sum(0)))
        correlation = np.divide(b.T @ a, scale, out=np.zeros_like(scale), where=scale > 0)
        perms[name] = linear_sum_assignment(correlation, maximize=True)[1]
        alive[name] = ((a**2).sum(0) > 0, (b**2).sum(0) > 0)
    return perms, alive


def without_ties(perm, alive_a, alive_b):
    """Dead units of A are interchangeable (-1), and so is whatever stands where B's unit is dead (-2)."""
    perm = np.asarray(perm)
    return np.where(alive_b, np.where(alive_a[perm], perm, -1), -2).tolist()


def inputs(network_settings, count, seed=0):
    return torch.randn(count, *network_settings["in_shape"], generator=torch.Generator().manual_seed(seed))


def test_one_pass_finds_the_permutations_of_the_slow_reference(network_settings):
    model_a, model_b = (init_model(seed, **network_settings) for seed in (1, 2))
    x = inputs(network_settings, 96)
    spec = derive_spec(model_a, x[:2])
    result = match_activations(model_a, model_b, spec, x.split(40))  # uneven batches, pooled moments
    perms, alive = reference(model_a, model_b, spec, x)
    for name, perm in perms.items():
        assert sum(alive[name][0]) > len(perm) / 2, "most units must be alive for this to test anything"
        assert without_ties(result.permutation.perms[name], *alive[name]) == without_ties(perm, *alive[name]), name


def test_a_planted_permutation_is_recovered(network_settings):
    model_a = init_model(1, **network_settings)
    x = inputs(network_settings, 128)
    spec = derive_spec(model_a, x[:2])
    planted = random_permutation(spec, 5)
    model_b = copy.deepcopy(model_a)
    model_b.load_state_dict(planted.apply(model_a.state_dict()))
    result = match_activations(model_a, model_b, spec, x.split(64))
    alive = {name: units_at(model_a, group.site.node, x).std(0) > 0 for name, group in spec.groups.items()}
    for name, perm in planted.perms.items():
        found, live = result.permutation.perms[name], alive[name][perm]
        assert torch.equal(found[live], perm[live]), name  # dead units are all alike, any order of them is right
        assert result.objective[name] == pytest.approx(live.mean(), abs=1e-5)


def test_modes_are_left_alone_and_statistics_untouched():
    model = init_model(1, "resnet20", width=0.25, num_classes=10, in_shape=(3, 8, 8))
    before = copy.deepcopy(model.state_dict())
    spec = derive_spec(model, torch.zeros(2, 3, 8, 8))
    match_activations(model.train(), copy.deepcopy(model).eval(), spec, [torch.randn(8, 3, 8, 8)])
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_correlation_survives_a_large_mean_and_a_dead_unit():
    a = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * 1e-2 + 50.0
    a[:, 2] = 7.0
    moments = CrossMoments()
    for part in a.split(300):
        moments.add(part, part.flip(1))
    correlation = moments.correlation()
    assert correlation[2, 0] == pytest.approx(1.0, abs=1e-4)
    assert np.abs(correlation[0]).max() == 0  # B's first unit is A's dead one
    expected = np.corrcoef(a[:, :2].double().numpy().T)[0, 1]
    assert correlation[1, 0] == pytest.approx(expected, abs=1e-4)


def test_bad_input_is_named():
    model = init_model(1, "mlp", width=0.25, num_classes=10, in_shape=(40,))
    spec = derive_spec(model, torch.zeros(2, 40))
    with pytest.raises(ValueError, match="no samples"):
        match_activations(model, model, spec, [])
    with pytest.raises(ValueError, match=r"group 'fc1'.*NaN"):
        match_activations(model, model, spec, [torch.full((4, 40), float("nan"))])
    with pytest.raises(ValueError, match="another architecture"):
        match_activations(model, nn.Sequential(nn.Linear(40, 10)), spec, [torch.zeros(2, 40)])


def test_the_watched_sites_can_be_chosen():
    settings = {"name": "resnet20", "width": 0.5, "num_classes": 10, "in_shape": (3, 16, 16)}
    model_a, model_b = (init_model(seed, **settings) for seed in (1, 2))
    x = inputs(settings, 64)
    spec = derive_spec(model_a, x[:2])
    stream = "layer3.0.conv2"
    last, last_but_one = (spec.groups[stream].sites[index].node for index in (-1, -2))
    assert (last, last_but_one) == ("relu__18", "relu__16")
    paper = spec.watch(stream_site={stream: -2})
    assert paper.groups[stream].site.node == last_but_one
    assert all(paper.groups[name].site == group.site for name, group in spec.groups.items() if name != stream)
    before = spec.watch("pre_activation")
    assert before.groups[stream].site.node == "add__8", "the sum, before the in-place ReLU overwrites it"
    for watched in (paper, before):
        result = match_activations(model_a, model_b, watched, [x])
        perms, alive = reference(model_a, model_b, watched, x)
        assert without_ties(result.permutation.perms[stream], *alive[stream]) == without_ties(perms[stream], *alive[stream])
    with pytest.raises(ValueError, match="there is no group 'layer9'; there are conv1, "):
        spec.watch(stream_site={"layer9": -1})
    with pytest.raises(ValueError, match="has 1 sites, there is none at -2"):
        spec.watch(stream_site={"layer1.0.conv1": -2})


def test_memory_does_not_grow_with_the_samples():
    """What stays between batches is the moments: no activation outlives its batch."""
    settings = {"name": "mlp", "width": 0.5, "num_classes": 10, "in_shape": (40,)}
    model_a, model_b = (init_model(seed, **settings) for seed in (1, 2))
    spec = derive_spec(model_a, torch.zeros(2, 40))
    alive = []

    def batches():
        for seed in range(20):
            x = inputs(settings, 8, seed)
            alive.append(weakref.ref(x))
            yield x
            del x
            assert sum(ref() is not None for ref in alive) <= 2

    match_activations(model_a, model_b, spec, batches())
