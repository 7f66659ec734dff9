"""float32 is float32 on every device and in every stage, whichever of torch's two flags is read."""

import pytest
import torch
from torch import nn

from raylth.core.batchnorm import reset_bn_stats
from raylth.core.data import ArrayDataset
from raylth.core.layerwise import reset_and_predict
from raylth.core.matching import match_activations
from raylth.core.models import init_model
from raylth.core.permutation import derive_spec
from raylth.core.precision import precision, set_precision
from raylth.core.program import Run
from raylth.core.repair import repair, site_statistics
from raylth.core.training.loop import Recipe, evaluate, train
from raylth.stages import make_context
from raylth.store import Store
from tests.core.training.test_loop import random_split


def flags():
    """All that torch's kernels and its compiler read; a read raises where the older and the newer flag contradict."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision,
        cudnn.allow_tf32, matmul.allow_tf32, torch.get_float32_matmul_precision(),
    )  # fmt: skip


IEEE = ("ieee", "ieee", "ieee", False, False, "highest")
TF32 = ("tf32", "tf32", "tf32", True, True, "high")


@pytest.fixture(autouse=True)
def _as_before():
    with precision("float32"):
        yield


@pytest.mark.parametrize("name", ["float32", "bf16", "tf32"])
def test_both_flags_say_the_same(name):
    expected = TF32 if name == "tf32" else IEEE
    set_precision(name)
    assert flags() == expected
    for outer in ("float32", "tf32"):
        set_precision(outer)
        before = flags()
        with precision(name):
            assert flags() == expected
            with precision("tf32"), pytest.raises(RuntimeError, match="stop"), precision("float32"):
                raise RuntimeError("stop")
            assert flags() == expected
        assert flags() == before


def test_what_torch_starts_with_is_put_back():
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision = "tf32", "tf32", "none"
    before = flags()
    with precision("float32"):
        assert flags() == IEEE
    assert flags() == before


class Watched(nn.Module):
    """A network that notes what the flags say while it computes."""

    def __init__(self, seed):
        super().__init__()
        self.inner = init_model(seed, "resnet20", width=0.25, num_classes=10, in_shape=(3, 8, 8))
        self.seen = []
        self.inner.conv1.register_forward_pre_hook(lambda module, args: self.seen.append(flags()))

    def forward(self, x):
        return self.inner(x)


def as_a_users_process(call, *networks):
    """Run a function of the library in a process that lets everything be tf32; returns what the flags said in it."""
    set_precision("tf32")
    for network in networks:
        network.seen.clear()
    call()
    assert flags() == TF32
    return [each for network in networks for each in network.seen]


def test_the_librarys_functions_compute_in_float32_whatever_the_process_allows(monkeypatch):
    a, b, middle = (Watched(seed) for seed in range(3))
    step = Run.step

    def watched(run, place):  # matching runs the exported programs
        a.seen.append(flags())
        return step(run, place)

    monkeypatch.setattr(Run, "step", watched)
    split = random_split((3, 8, 8), 64)
    spec, batches = derive_spec(a, split.x[:2]), list(split.x.split(32))
    calls = {
        "matching": (lambda: match_activations(a, b, spec, batches), (a, b)),
        "repair": (lambda: repair(middle, *(site_statistics(n, batches) for n in (a, b)), 0.5, batches), (a, b, middle)),
        "reset": (lambda: reset_bn_stats(middle, batches), (middle,)),
        "layer by layer": (lambda: reset_and_predict(middle, batches), ()),
        "evaluation": (lambda: evaluate(middle, split), (middle,)),
        "training": (lambda: train(middle, split, Recipe(1, lr=0.01, batch_size=32), seed=0), (middle,)),
    }
    for name, (call, networks) in calls.items():
        seen = as_a_users_process(call, *networks)
        assert set(seen) <= {IEEE}, name
        assert seen or not networks, name


def test_a_stages_process_computes_in_float32():
    """Also what no function of ours wraps: the proof of a permutation, ensembles, a line's networks."""
    set_precision("tf32")
    x, y = torch.zeros(4, 3, 8, 8, dtype=torch.uint8).numpy(), torch.zeros(4, dtype=torch.int64).numpy()
    make_context(Store("unused"), ArrayDataset(x, y, x, y), data_sha256="unused")
    assert flags() == IEEE
