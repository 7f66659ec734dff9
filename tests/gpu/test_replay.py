"""A graph that is replayed computes what the plain loop computes, bit for bit."""

import subprocess
import sys

import pytest
import torch

from raylth.core.training.loop import evaluate, evaluate_together
from raylth.core.training.recipe import Recipe
from tests.gpu.conftest import ROOT
from tests.gpu.trainings import COUNT, NETWORKS, STEPS, alone, assert_same_bits, masks_of, random_split, run

NAMES = ("mlp", "resnet20", "vgg11", "attention")


def recipe_for(device, precision="float32"):
    """21 steps, of which seven end an epoch with a ragged batch; on a CPU six."""
    epochs = 7 if device.type == "cuda" else 2
    return Recipe(epochs, lr=0.05, batch_size=32, label_smoothing=0.1, precision=precision, drop_last=False)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_members_of_a_graph_have_the_bits_of_the_plain_loop(device, name, precision):
    """Three members of one graph, each with its own seed, mask and augmentation, equal each alone by the plain loop.

    Losses of all epochs, weights, statistics and evaluations are compared. It fails where a capture leaves a trace of its
    warm-up, reads a stale learning rate or label, mixes members, or computes a product in another order.
    """
    if device.type == "cpu" and (name, precision) == ("vgg11", "bf16"):
        pytest.skip("takes a CPU long; ResNet-20 has the same products")
    recipe = recipe_for(device, precision)
    assert recipe.epochs * STEPS >= 20 or device.type == "cpu"
    expected, losses = alone(name, 3, device, recipe)
    program, networks, found = run(name, "graph", 3, device, recipe)
    assert_same_bits(expected, networks)
    assert found == losses
    for mask, network in zip(masks_of(networks), networks, strict=True):
        state = network.state_dict()
        assert all(not state[layer].cpu()[~alive].any() for layer, alive in mask.items())
    split = random_split(NETWORKS[name][0], device)
    assert evaluate_together(program, split) == [evaluate(network, split) for network in expected]
    first, second = (network.state_dict() for network in networks[:2])
    assert any(not torch.equal(tensor, second[key]) for key, tensor in first.items()), "one seed for all"


def test_a_graph_of_one_network_has_the_bits_of_the_plain_loop(device):
    """As above with one member: where this holds and the other does not, the fault lies between the members."""
    recipe = recipe_for(device)
    expected, losses = alone("resnet20", 1, device, recipe, masked=False)
    _, networks, found = run("resnet20", "graph", 1, device, recipe, masked=False)
    assert_same_bits(expected, networks)
    assert found == losses


def test_a_network_with_dropout_has_the_bits_of_the_plain_loop_in_a_graph(device):
    """What a network draws is seeded for each step, so a graph must draw the plain loop's numbers in all of them.

    It fails where the warm-up before a capture moves the generator on: the first step of each size of batch, whose replay
    follows the capture, would then draw other numbers, and with them a training that continues elsewhere.
    """
    recipe = recipe_for(device)
    expected, losses = alone("dropout", 1, device, recipe)
    _, networks, found = run("dropout", "graph", 1, device, recipe)
    assert found == losses
    assert_same_bits(expected, networks)
    undisturbed = torch.nn.Dropout.forward
    try:  # the check can fail: without dropout it is another training
        torch.nn.Dropout.forward = lambda self, x: x
        _, other = alone("dropout", 1, device, recipe)
    finally:
        torch.nn.Dropout.forward = undisturbed
    assert other != losses


@pytest.mark.parametrize("check", ["pinned_beside_a_capture", "full_in_a_capture"])
def test_captures_bear_what_happens_beside_them_and_within(device, check):
    """A thread that pins memory during a capture, and memory that runs out within one; see `tests.gpu.apart`."""
    command = [sys.executable, "-m", "tests.gpu.apart", check, device.type]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_epochs_end_with_a_ragged_batch():
    assert -(-COUNT // 32) == STEPS
    assert COUNT % 32
