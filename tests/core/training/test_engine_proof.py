"""An engine that computes something else, even a little, is not used; the next simpler one is, and a line says why."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raylth.core.training import engine_proof as proof
from raylth.core.training import step as step_module
from raylth.core.training.engine_proof import prove, usable
from raylth.core.training.engines import captured, compiled, program
from raylth.core.training.packing import NotPackable
from raylth.core.training.sgd import SGD
from raylth.core.training.step import LeanStep
from tests.core.training.engines.test_engines import ANY, RECIPE
from tests.core.training.test_packing import seeded


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch):
    monkeypatch.setattr(proof, "PROVED", {})


def networks_of(name="resnet20", size=2):
    return [ANY[name][1](seed) for seed in range(size)], ANY[name][0]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", ["mlp", "resnet20", "attention"])
def test_the_graph_is_the_plain_loops_own_bits(name, precision):
    networks, shape = networks_of(name)
    before = [{key: tensor.clone() for key, tensor in network.state_dict().items()} for network in networks]
    found = prove("graph", networks, replace(RECIPE, precision=precision), shape)
    assert found.is_exact
    assert found.holds
    for state, network in zip(before, networks, strict=True):
        assert all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in state.items()), "copies were trained"


def coarse(function, bits, x, weight, *rest, **options):
    """A convolution whose inputs have so many bits of fraction, as tf32 has 10 of them."""
    unit = 2.0**-bits

    def rounded(tensor):
        mantissa, exponent = torch.frexp(tensor.detach())
        return tensor + (torch.ldexp(torch.round(mantissa / unit) * unit, exponent) - tensor.detach())

    return function(rounded(x), rounded(weight), *rest, **options)


class NoDecay(SGD):
    def __init__(self, program, momentum, weight_decay, masks):
        super().__init__(program, momentum, 0.0, masks)


class NoMask(SGD):
    def _prune(self, program, masks):
        super()._prune(program, masks)
        return [], []


class Late(LeanStep):
    """The last batch, which is smaller, moves nothing."""

    def __call__(self, x, y, rate, count):
        return super().__call__(x, y, rate if count == RECIPE.batch_size else 0.0 * rate, count)


class Frozen(LeanStep):
    """Batch norms forget what the batch was."""

    def __call__(self, x, y, rate, count):
        kept = [buffer.clone() for buffer in self.program.network.buffers()]
        loss = super().__call__(x, y, rate, count)
        for buffer, value in zip(self.program.network.buffers(), kept, strict=True):
            buffer.copy_(value)
        return loss


class Tf32(LeanStep):
    def __call__(self, x, y, rate, count):
        real = F.conv2d
        try:
            F.conv2d = partial(coarse, real, 10)
            return super().__call__(x, y, rate, count)
        finally:
            F.conv2d = real


FAULTS = {
    "weight decay left out": (step_module, "SGD", NoDecay),
    "masks that are applied once": (step_module, "SGD", NoMask),
    "the ragged batch left out": (program, "LeanStep", Late),
    "statistics that stay": (program, "LeanStep", Frozen),
    "tf32 in place of float32": (program, "LeanStep", Tf32),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_with_a_fault_is_not_used(monkeypatch, fault):
    module, name, wrong = FAULTS[fault]
    networks, shape = networks_of()
    real_run, real = proof._Trial.run, getattr(module, name)

    def run(self, engine, recipe):  # the plain loop stays right
        monkeypatch.setattr(module, name, real if engine == "eager" else wrong)
        return real_run(self, engine, recipe)

    monkeypatch.setattr(proof._Trial, "run", run)
    engine, (line,) = usable("graph", networks, RECIPE, shape)
    assert engine == "eager"
    if wrong is NoMask:
        assert line.startswith("engine 'graph' cannot be used: MaskBroken: conv1.weight: ")
    else:
        assert line.startswith("engine 'graph' is not used: after 20 steps it is ")


def test_an_engine_that_cannot_be_built_falls_back_step_by_step_and_is_tried_once(monkeypatch):
    networks, shape = networks_of("mlp")
    real, tried = proof.prove, []

    def fail(engine, *args):
        tried.append(engine)
        if engine == "compiled":
            raise RuntimeError("no compiler\nand much more")
        return real(engine, *args)

    monkeypatch.setattr(proof, "prove", fail)
    assert usable("compiled", networks, RECIPE, shape) == (
        "graph", ["engine 'compiled' cannot be used: RuntimeError: no compiler"],
    )  # fmt: skip
    assert usable("compiled", networks, RECIPE, shape) == ("graph", [])
    assert tried == ["compiled", "graph"]


def test_running_out_of_memory_says_nothing_about_an_engine(monkeypatch):
    networks, shape = networks_of("mlp")

    def full(*args):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(proof, "prove", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        usable("graph", networks, RECIPE, shape)
    monkeypatch.undo()
    assert usable("graph", networks, RECIPE, shape)[0] == "graph"


def test_nan_is_no_proof(monkeypatch):
    networks, shape = networks_of("mlp")
    monkeypatch.setattr(captured.CapturedSteps, "__call__", lambda self, x, y, rate, count: torch.full((2,), float("nan")))
    with pytest.raises(RuntimeError, match="diverged"):
        prove("graph", networks, RECIPE, shape)
    assert usable("graph", networks, RECIPE, shape)[0] == "eager"


def test_one_network_that_draws_is_proved_by_itself():
    build = partial(seeded, lambda: nn.Sequential(nn.Linear(40, 20), nn.Dropout(0.5), nn.Linear(20, 10)))
    assert prove("graph", [build(0), build(1)], RECIPE, (40,)).is_exact
    with pytest.raises(NotPackable):
        program.make_program([build(0), build(1)], "graph")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_step_is_proved_and_is_compiled_once_for_each_shape():
    networks, shape = networks_of("mlp")
    found = prove("compiled", networks, RECIPE, shape)
    assert found.holds
    shapes = {key[-1] for key in compiled.COMPILED if key[0] is type(networks[0])}
    assert shapes == {(32, 40), (9, 40)}, "two networks, two sizes of batch"
