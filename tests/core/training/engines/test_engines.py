"""Every engine trains its members as they would be trained alone; on a CPU a graph is replayed by calling the function."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from raylth.core.training.engines.captured import CapturedSteps
from raylth.core.training.engines.program import make_program, make_steps
from raylth.core.training.loop import Diverged, evaluate, evaluate_together, train, train_together
from raylth.core.training.packing import NotPackable
from raylth.core.training.step import LeanStep, Step
from tests.core.training.test_loop import random_split
from tests.core.training.test_packing import NETWORKS, masks_for, seeded
from tests.core.training.test_packing import RECIPE as FOUR_EPOCHS

RECIPE = replace(FOUR_EPOCHS, epochs=2)
COUNT = 70  # samples: two batches of 32 and a ragged one of 6


class Attention(nn.Module):
    """What a `Pack` cannot stack: attention, layer norm, a class token."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Linear(8, 16), nn.Parameter(torch.zeros(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        tokens = self.embed(x.view(len(x), 5, 8))
        return self.head(self.block(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0])


class Tied(nn.Module):
    """One layer used twice, under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(40, 40), nn.Linear(40, 10)
        self.second = self.first

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


ANY = {
    **NETWORKS,
    "attention": ((40,), partial(seeded, Attention)),
    "tied": ((40,), partial(seeded, Tied)),
}


def run(name, engine, size, masks=None, recipe=RECIPE, count=COUNT, **options):
    shape, build = ANY[name]
    networks = [build(seed) for seed in range(size)]
    program = make_program(networks, engine)
    found = train_together(
        program, random_split(shape, count), recipe, seeds=[10 + number for number in range(size)],
        augment="flip_crop" if len(shape) == 3 else "none", masks=masks or [None] * size, **options,
    )  # fmt: skip
    return program, networks, found


def alone(name, size, masks=None, recipe=RECIPE, count=COUNT):
    shape, build = ANY[name]
    networks = [build(seed) for seed in range(size)]
    augment = "flip_crop" if len(shape) == 3 else "none"
    losses = [
        train(network, random_split(shape, count), recipe, seed=10 + n, augment=augment, mask=masks[n] if masks else None)
        for n, network in enumerate(networks)
    ]
    return networks, losses


def assert_same_bits(one, other):
    for expected, found in zip(one, other, strict=True):
        state = found.state_dict()
        for key, tensor in expected.state_dict().items():
            assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "float32") for name in ANY),
        *((name, "bf16") for name in ("mlp", "resnet20", "attention", "tied", "asymmetric mlp")),
    ],
)
def test_a_member_of_a_graph_has_the_bits_that_it_has_alone(name, precision):
    """Own orders, augmentation and masks; each epoch ends with a ragged batch."""
    recipe = replace(RECIPE, precision=precision)
    masks = masks_for(name, 3) if name in NETWORKS else None
    expected, losses = alone(name, 3, masks, recipe)
    program, networks, found = run(name, "graph", 3, masks, recipe)
    assert found == losses
    assert_same_bits(expected, networks)
    for mask, network in zip(masks or (), networks, strict=False):
        assert all(not network.state_dict()[layer][~alive].any() for layer, alive in mask.items())
    split = random_split(ANY[name][0], COUNT)
    assert evaluate_together(program, split) == [evaluate(network, split) for network in expected]


def test_a_member_of_a_graph_that_diverges_leaves_the_others_alone():
    bad = NETWORKS["mlp"][1](2)
    with torch.no_grad():
        bad.fc1.weight.mul_(1e20)
    expected, _ = alone("mlp", 2)
    networks = [NETWORKS["mlp"][1](0), bad, NETWORKS["mlp"][1](1)]
    split = random_split((40,), COUNT)
    found = train_together(make_program(networks, "graph"), split, RECIPE, seeds=[10, 5, 11], masks=[None] * 3)
    assert isinstance(found[1], Diverged)
    assert_same_bits(expected, [networks[0], networks[2]])


@pytest.mark.parametrize("stop_at", [(1, 0), (1, 1)])
@pytest.mark.parametrize("name", ["resnet20", "attention"])
def test_a_resumed_graph_has_the_same_bits(name, stop_at):
    _, whole, losses = run(name, "graph", 2)
    states = []

    class Stopped(Exception):
        pass

    def stop(epochs, step, snapshots):
        if (epochs, step) == stop_at:
            states.extend(snapshots())
            raise Stopped

    with pytest.raises(Stopped):
        run(name, "graph", 2, on_step=stop)
    _, resumed, again = run(name, "graph", 2, states=states)
    assert again == losses
    assert_same_bits(whole, resumed)
    if name == "resnet20":  # a state that one engine saved is any engine's
        _, _, again = run(name, "eager", 2, states=states)
        for one, other in zip(again, losses, strict=True):
            assert one == pytest.approx(other, rel=1e-3)


def test_batches_are_laid_into_the_static_buffers_and_not_copied_again():
    shape, build = NETWORKS["resnet20"]
    split, copied = random_split(shape, COUNT), []
    program = make_program([build(seed) for seed in range(2)], "graph")
    steps = make_steps(program, RECIPE, [None] * 2, torch.device("cpu"))
    assert isinstance(steps, CapturedSteps)
    batches = split.epoch([1, 2], 0, 32, augment="flip_crop", by_member=True, place=steps.place)
    plain = split.epoch([1, 2], 0, 32, augment="flip_crop", by_member=True)
    for (x, y), (other_x, other_y) in zip(batches, plain, strict=True):
        copied.append(x is not (steps.place(len(y) // 2) or (None,))[0])
        steps(x, y, 0.01, len(y) // 2)
        held = steps.held[(len(y) // 2, *shape)]
        assert torch.equal(held.x, other_x)
        assert torch.equal(held.y, other_y)
    assert copied == [True, False, False], "all but the first, which shows the shape"


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operations(step_type, precision):
    shape, build = NETWORKS["resnet20"]
    program = make_program([build(0)])
    recipe = replace(RECIPE, precision=precision)
    step = step_type(program, recipe, [None], torch.device("cpu"))
    program.network.train()
    x, y = torch.randn(8, *shape), torch.randint(0, 10, (8,))
    step(x, y, 0.01, 8)
    with Operations() as counted:
        step(x, y, 0.01, 8)
    return counted.found


def test_a_lean_step_counts_its_batches_and_casts_its_weights_at_once():
    """ResNet-20 has 22 convolutions and a linear layer, 21 batch norms of which each counts."""
    plain, lean = operations(Step, "bf16"), operations(LeanStep, "bf16")
    assert plain.count("add_") - lean.count("add_") == 21
    assert plain.count("_to_copy") - lean.count("_to_copy") >= 2 * 22, "weights and gradients"
    assert lean.count("_foreach_copy_") == 2
    assert lean.count("_foreach_add_") <= plain.count("_foreach_add_") + 1
    assert len(lean) < len(plain) - 60


@pytest.mark.parametrize("engine", ["graph"])
def test_several_networks_that_draw_are_refused_and_one_is_trained_as_alone(engine):
    build = partial(seeded, lambda: nn.Sequential(nn.Linear(40, 20), nn.Dropout(0.5), nn.Linear(20, 10)))
    with pytest.raises(NotPackable, match="random numbers"):
        make_program([build(0), build(1)], engine)
    split, one, other = random_split((40,), COUNT), build(0), build(0)
    expected = train(one, split, RECIPE, seed=3)
    (found,) = train_together(make_program([other], engine), split, RECIPE, seeds=[3], masks=[None])
    assert found == expected
    assert_same_bits([one], [other])
    make_program([nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)) for _ in range(2)], engine)


def test_the_networks_keep_what_they_had_when_a_training_is_stopped():
    networks = [NETWORKS["mlp"][1](seed) for seed in range(2)]
    before = copy.deepcopy(networks)

    def stop(epochs, losses):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train_together(
            make_program(networks, "graph"), random_split((40,), COUNT), RECIPE, seeds=[1, 2], masks=[None] * 2, on_epoch=stop
        )
    for one, other in zip(before, networks, strict=True):
        assert any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_crops_that_grow_have_buffers_of_their_own():
    """Progressive resizing: the same number of samples in another shape."""
    last = torch.channels_last

    def build():
        layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        return nn.Sequential(*layers).to(memory_format=last)

    ours, plain = (seeded(build, 0) for _ in range(2))
    steps = make_steps(make_program([ours], "graph"), RECIPE, [None], torch.device("cpu"))
    step = Step(make_program([plain]), RECIPE, [None], torch.device("cpu"))
    for side in (8, 8, 12, 8):
        x, y = torch.randn(4, 3, side, side).contiguous(memory_format=last), torch.randint(0, 10, (4,))
        assert torch.equal(steps(x, y, 0.01, 4), step(x, y, 0.01, 4))
    assert_same_bits([plain], [ours])
