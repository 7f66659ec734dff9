"""The rules by which masks change while a network is trained, each against a plain reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylth.core.masks import num_alive
from raylth.core.pruning import DynamicFinder, StartInputs, UpdateInputs
from raylth.core.pruning.at_initialisation import erk_densities
from raylth.core.pruning.finder import FINDERS
from raylth.core.pruning.while_training import cubic_num_alive, drop_and_grow, gradual_pruning, rigl, set_evolution


def layers(seed: int, density: float = 0.3) -> tuple[dict, dict, dict]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first": (8, 6), "second": (5, 8, 3, 3)}
    mask = {name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()}
    weights = {name: torch.randn(shape, generator=generator) * mask[name] for name, shape in shapes.items()}
    gradients = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return weights, gradients, mask


def inputs_of(layers_seed: int = 0, **changes: object) -> UpdateInputs:
    weights, gradients, mask = layers(layers_seed)
    given = {
        "weights": weights, "gradients": gradients, "mask": mask, "num_alive": num_alive(mask), "number": 1, "count": 4,
        "progress": 0.25, "fraction": 0.3, "seed": 7,
    }  # fmt: skip
    return UpdateInputs(**{**given, **changes})


@given(st.integers(1, 10_000), st.floats(0.01, 0.99), st.integers(1, 50))
def test_the_cubic_schedule(total, sparsity, count):
    final = total - round(sparsity * total)
    kept = [cubic_num_alive(total, final, number, count) for number in range(1, count + 1)]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == final
    for number, alive in enumerate(kept, start=1):  # Zhu and Gupta's equation with s_i = 0, t_0 = 0, n = count
        s_f = (total - final) / total
        s_t = s_f + (0 - s_f) * (1 - number / count) ** 3
        assert abs((total - alive) / total - s_t) <= 0.5 / total + 1e-9


def test_gradual_pruning_keeps_the_largest_magnitudes_of_all_layers():
    weights, _, _ = layers(3, density=2.0)
    full = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    mask = gradual_pruning(inputs_of(weights=weights, mask=full, num_alive=50, number=4, count=4))
    assert num_alive(mask) == 50
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights.values()])
    kept = torch.cat([weights[name][alive].abs().flatten() for name, alive in mask.items()])
    assert kept.min() >= magnitudes.sort(descending=True).values[49]


def test_gradual_pruning_never_revives():
    inputs = inputs_of(number=1, count=100)  # the schedule would have more weights alive than there are
    assert all(torch.equal(found, inputs.mask[name]) for name, found in gradual_pruning(inputs).items())


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.1, 0.9), st.floats(0.0, 1.0))
def test_drop_and_grow_by_hand(seed, size, density, share):
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(size, generator=generator) < density
    weight, score = (torch.randn(size, generator=generator) for _ in range(2))
    count = min(int(share * int(alive.sum())), size - int(alive.sum()))
    found = drop_and_grow(weight, alive, score, count)
    places = [place for place in range(size) if alive[place]]
    kept = set(sorted(places, key=lambda place: float(weight[place].abs()))[count:])
    free = [place for place in range(size) if place not in kept]
    grown = set(sorted(free, key=lambda place: -float(score[place]))[:count])
    assert {place for place in range(size) if found[place]} == kept | grown
    assert int(found.sum()) == int(alive.sum())


def test_rigl_grows_the_largest_gradients_and_keeps_densities():
    inputs = inputs_of(5)
    mask = rigl(inputs)
    for name, alive in inputs.mask.items():
        count = int(0.3 / 2 * (1 + math.cos(math.pi * 0.25)) * int(alive.sum()))
        assert count > 0
        assert int(mask[name].sum()) == int(alive.sum())
        gone, grown = alive & ~mask[name], mask[name] & ~alive
        assert int(gone.sum()) <= count
        left = inputs.weights[name].abs()[alive & mask[name]]
        assert inputs.weights[name].abs()[gone].max() <= left.sort().values[count]
        outside = inputs.gradients[name].abs()[~mask[name]]
        assert inputs.gradients[name].abs()[grown].min() >= outside.max()


def test_rigls_fraction_falls_by_half_a_cosine():
    changed = [
        sum(int((found & ~alive).sum()) for found, alive in zip(rigl(inputs).values(), inputs.mask.values(), strict=True))
        for inputs in (inputs_of(1, progress=progress) for progress in (0.0, 0.5, 0.999))
    ]
    assert changed[0] > changed[1] > changed[2] == 0


def test_set_replaces_at_random_and_keeps_densities():
    inputs = inputs_of(2)
    found, again, other = (set_evolution(each) for each in (inputs, inputs, inputs_of(2, seed=8)))
    for name, alive in inputs.mask.items():
        assert int(found[name].sum()) == int(alive.sum())
        assert torch.equal(found[name], again[name])
        gone = alive & ~found[name]
        assert inputs.weights[name].abs()[gone].max() <= inputs.weights[name].abs()[alive & found[name]].max()
    assert any(not torch.equal(found[name], other[name]) for name in found)


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_they_start_at_random_with_erk_densities(name):
    mask = {"first": torch.ones(8, 6, dtype=torch.bool), "second": torch.ones(5, 8, 3, 3, dtype=torch.bool)}
    found = FINDERS[name].start(StartInputs(mask, 100, 3))
    wanted = erk_densities({layer: tuple(alive.shape) for layer, alive in mask.items()}, 100)
    assert {layer: int(alive.sum()) for layer, alive in found.items()} == wanted


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"update": 3}, "update: should be a function, found 3"),
        ({"summary": None}, "summary: should be a string"),
        ({"every": 0}, "every: should be at least 1 step, found 0"),
        ({"until": 0.0}, "until: should be above 0 and at most 1"),
        ({"fraction": 1.5}, "fraction: should be above 0 and at most 1"),
    ],
)
def test_what_is_no_finder(changes, text):
    with pytest.raises((TypeError, ValueError), match=text):
        DynamicFinder(**{"start": print, "update": print, "summary": "", **changes})
