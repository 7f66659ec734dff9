"""The engine `stacked` on a CPU, its kernels interpreted: `python -m tests.core.training.engines.stacked_checks NAME`.

Triton settles whether it interprets before its first import: hence a process of its own. Only float32 (triton #11584).
"""

import contextlib
import os
import sys

import torch
from torch import nn

from raylth.core.fixed_entries import fix_entries
from raylth.core.masks import full_mask
from raylth.core.training import engine_proof as proof
from raylth.core.training.engines.program import make_program
from raylth.core.training.loop import Diverged, evaluate, evaluate_together, train, train_together
from raylth.core.training.recipe import Recipe
from tests.core.training.engines.checks import set_interpreter_up
from tests.core.training.test_loop import random_split

SHAPE, COUNT, SIZE = (3, 6, 6), 14, 3
RECIPE = Recipe(2, lr=0.002, batch_size=6, label_smoothing=0.1, drop_last=False)  # two full batches and one of two


class Everything(nn.Module):
    """Each form in which convolutions and batch norms meet."""

    def __init__(self):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.bn2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6))
        self.pre = nn.BatchNorm2d(6)  # not behind a convolution
        self.third = nn.Conv2d(6, 5, (1, 3), padding=(0, 1))  # a bias, no batch norm
        self.relu, self.pool, self.flat = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), nn.Flatten()
        self.hidden, self.bn3, self.head = nn.Linear(5 * 4, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu_(self.bn1(self.first(x)))
        out = self.bn2(self.second(x))
        out += self.shortcut(x)
        x = torch.relu_(out)
        x = self.relu(self.third(torch.relu(self.pre(x)) + x))
        return self.head(torch.relu(self.bn3(self.hidden(self.flat(self.pool(x))))))


def build(seed):
    torch.manual_seed(seed)
    network = Everything()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(-1.0, 1.0)  # either sign
                module.bias.normal_()
    return network


def masks():
    draw = torch.Generator().manual_seed(0)
    return [{name: torch.rand(a.shape, generator=draw) < 0.5 for name, a in full_mask(build(0)).items()} for _ in range(SIZE)]


def without_symmetry(seed):
    """The same with the entries that the architecture fixes."""
    network = build(seed)
    fix_entries(network)
    return network


def run(size=SIZE, wave=2, **options):
    networks = [build(seed) for seed in range(size)]
    program = make_program(networks, "stacked", wave=wave)
    found = train_together(
        program, random_split(SHAPE, COUNT), RECIPE, seeds=[10 + n for n in range(size)], augment="flip_crop",
        masks=masks()[:size], **options,
    )  # fmt: skip
    return program, networks, found


def assert_close(one, other, start):
    for key, tensor in one.state_dict().items():
        apart = float((other.state_dict()[key].double() - tensor.double()).norm())
        moved = float((tensor.double() - start.state_dict()[key].double()).norm())
        assert apart <= 1e-3 * moved + 1e-6, f"{key}: apart by {apart}, moved by {moved}"


def alone():
    """Members, in waves of two and one, with masks and ragged batches, end as each does alone; fusions are there."""
    program, networks, found = run()
    layers = dict(program.network[0].program.named_modules())
    calls = {node.target: len(node.args) for node in program.network[0].program.graph.nodes if node.op == "call_module"}
    assert {name for name in ("first", "second", "shortcut.0") if layers[name].moments} == {"first", "second", "shortcut.0"}
    assert calls["bn1"] == 3, "moments of the convolution"
    assert max(calls["bn2"], calls["shortcut.1"]) == 4, "and the other part of the sum"
    assert layers["bn1"].relu
    assert layers["bn2"].relu + layers["shortcut.1"].relu == 1
    split = random_split(SHAPE, COUNT)
    for number, network in enumerate(networks):
        expected, mask = build(number), masks()[number]
        losses = train(expected, split, RECIPE, seed=10 + number, augment="flip_crop", mask=mask)
        assert max(abs(a - b) for a, b in zip(losses, found[number], strict=True)) < 1e-4
        assert_close(expected, network, build(number))
        assert all(not network.state_dict()[name][~alive].any() for name, alive in mask.items())
        assert network.bn1.num_batches_tracked == expected.bn1.num_batches_tracked == 6
    assert evaluate_together(program, split) == [evaluate(network, split) for network in networks]


def fixed():
    """What the architecture fixes is read by the kernels, and learns nothing."""
    networks = [without_symmetry(seed) for seed in range(2)]
    found = train_together(
        make_program(networks, "stacked"), random_split(SHAPE, COUNT), RECIPE, seeds=[10, 11], augment="flip_crop",
        masks=[None] * 2,
    )  # fmt: skip
    for number, network in enumerate(networks):
        expected = without_symmetry(number)
        losses = train(expected, random_split(SHAPE, COUNT), RECIPE, seed=10 + number, augment="flip_crop")
        assert max(abs(a - b) for a, b in zip(losses, found[number], strict=True)) < 1e-4
        assert_close(expected, network, without_symmetry(number))
        for layer in (network.first, network.third, network.hidden):
            assert not layer.weight[layer.fixed.places].any()


def resumed():
    """A training that continues from a snapshot has the same bits, in waves of another size; who diverges harms no other."""
    _, whole, losses = run()
    states = []

    class Stopped(Exception):
        pass

    def stop(epochs, step, snapshots):
        if (epochs, step) == (1, 1):
            states.extend(snapshots())
            raise Stopped

    with contextlib.suppress(Stopped):
        run(on_step=stop)
    _, again, other = run(wave=8, states=states)
    assert other == losses
    for one, two in zip(whole, again, strict=True):
        assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    networks = [build(0), build(5), build(2)]
    with torch.no_grad():
        networks[1].head.weight.fill_(float("inf"))
    found = train_together(
        make_program(networks, "stacked"), random_split(SHAPE, COUNT), RECIPE, seeds=[10, 11, 12], augment="flip_crop",
        masks=masks(),
    )  # fmt: skip
    assert isinstance(found[1], Diverged)
    for number in (0, 2):
        assert all(torch.equal(t, networks[number].state_dict()[name]) for name, t in whole[number].state_dict().items())


def proved():
    """The proof holds, and does not when a kernel is wrong."""
    from raylth.core.training.engines import stacked_ops

    proof.STEPS = 6  # an interpreted one takes a second
    networks = [build(0), build(1)]
    found = proof.prove("stacked", networks, RECIPE, SHAPE)
    assert found.holds, found
    assert not found.is_exact
    real = stacked_ops.norm
    stacked_ops.norm = lambda y, mean, var, *rest, eps, relu: real(y, mean, var, *rest, eps=2 * eps + 1e-3, relu=relu)
    wrong = proof.prove("stacked", networks, RECIPE, SHAPE)
    assert not wrong.holds, wrong
    print(found, wrong)


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    set_interpreter_up()
    torch.set_num_threads(1)
    {"alone": alone, "fixed": fixed, "resumed": resumed, "proved": proved}[sys.argv[1]]()
