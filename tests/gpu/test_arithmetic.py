"""float32 is float32 on a GPU, and what is computed there is what a CPU computes."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raylth.core.batchnorm import reset_bn_stats
from raylth.core.data.dataset import ArrayDataset
from raylth.core.interpolate import barrier, interpolate, line
from raylth.core.layerwise import reset_and_predict
from raylth.core.permutation import random_permutation
from raylth.core.permutation.derive import derive_spec
from raylth.core.precision import precision, set_precision
from raylth.core.repair import repair, site_statistics
from raylth.core.training.loop import evaluate
from tests.gpu.trainings import NETWORKS, random_split

EXACT = 5e-5  # |found - wanted| / |wanted|; float32 has about 1e-6 here, tf32 4e-4
ROUNDING = 1e-4


def in_a_context(device):
    """Set a worker up, as a stage does."""
    stages = pytest.importorskip("raylth.stages", reason="needs pydantic", exc_type=ImportError)
    x, y = np.zeros((4, 40), np.float32), np.zeros(4, np.int64)
    stages.make_context(None, ArrayDataset(x, y, x, y), data_sha256="", device=device.type, load=lambda key, file: {})


def errors(device):
    """Return the relative errors of products and their gradients on a device, against float64 on the CPU."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    products = {
        "convolution": (lambda x, w: F.conv2d(x, w, padding=1), normal(32, 64, 16, 16), normal(64, 64, 3, 3)),
        "matrix product": (torch.matmul, normal(256, 512), normal(512, 256)),
        "linear layer": (F.linear, normal(256, 512), normal(256, 512)),
        "batched product": (torch.bmm, normal(4, 128, 256), normal(4, 256, 128)),
    }
    found = {}
    for name, (multiply, *factors) in products.items():
        wide = [each.to(torch.float32).double().requires_grad_() for each in factors]
        own = [each.detach().to(torch.float32).to(device).requires_grad_() for each in wide]
        if name == "convolution":
            own = [each.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for each in own]
        wanted, out = multiply(*wide), multiply(*own)
        grad = torch.randn(wanted.shape, generator=draw)
        wanted.backward(grad.double())
        out.backward(grad.to(device))
        for part, one, other in (
            ("", out, wanted),
            (" grad 1", own[0].grad, wide[0].grad),
            (" grad 2", own[1].grad, wide[1].grad),
        ):
            found[name + part] = float((one.detach().double().cpu() - other.detach()).norm() / other.detach().norm())
    return found


@pytest.mark.parametrize("set_up", [in_a_context, lambda device: set_precision("float32")], ids=["context", "set_precision"])
def test_float32_products_are_float32(device, set_up):
    """Convolutions, matrix products and their gradients agree with float64 to 1e-5: it fails where tf32 leaks in.

    The flags are set wrong first, so that what sets them is seen to do it.
    """
    with precision("float32"):  # gives the flags back
        set_precision("tf32")
        set_up(device)
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        found = errors(device)
    assert max(found.values()) <= EXACT, found


def test_tf32_is_seen(card):
    """The check above can fail: in tf32 both libraries are farther off than it allows, and float32 is back after it."""
    if torch.cuda.get_device_capability(card) < (8, 0):
        pytest.skip("this GPU has no tf32")
    with precision("tf32"):
        found = errors(card)
    print({name: f"{error:.1e}" for name, error in found.items()})
    assert max(error for name, error in found.items() if name.startswith("convolution")) > EXACT, found
    assert max(error for name, error in found.items() if not name.startswith("convolution")) > EXACT, found
    assert max(errors(card).values()) <= EXACT


def near(found, wanted, what):
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    error = float((found - wanted).norm()) / (float(wanted.norm()) + 1e-3 * wanted.numel() ** 0.5)
    assert error <= ROUNDING, f"{what}: {error:.1e}"


def pair(name, count):
    """Return two networks and samples.

    The second network is the first with its units in another order and some noise; the labels are what the first one says.
    """
    shape, build = NETWORKS[name]
    one, other = build(0), build(1)
    split = random_split(shape, torch.device("cpu"), count)
    spec = derive_spec(one, split.probe(2))
    planted = random_permutation(spec, 3)
    draw = torch.Generator().manual_seed(2)
    moved = {
        key: tensor + 0.05 * tensor.std(correction=0) * torch.randn(tensor.shape, generator=draw)
        if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for key, tensor in planted.apply(one.state_dict()).items()
    }  # fmt: skip
    other.load_state_dict(moved)
    reset_bn_stats(one, [split.probe(count)])
    reset_bn_stats(other, [split.probe(count)])
    with torch.no_grad():
        labels = one.eval()(split.probe(count)).argmax(1)
    return one, other, dataclasses.replace(split, y=labels), spec, planted


@pytest.mark.parametrize("name", ["mlp", "resnet20", "vgg11"])
def test_a_matching_is_the_cpus(device, name):
    """The permutations that matching finds are the CPU's, its correlations agree; they are mostly those that were planted.

    It fails where the sums are not float32 and float64 as they are to be, or A and B are confused on the way.
    """
    pytest.importorskip("scipy")
    from raylth.core.matching import match_activations

    one, other, split, spec, planted = pair(name, 256)
    found = {}
    for where in (torch.device("cpu"), device):
        networks = [copy.deepcopy(network).to(where) for network in (one, other)]
        batches = [x.to(where) for x, _ in split.batches(100)]
        found[where] = match_activations(*networks, spec, batches)
    wanted, on_device = found[torch.device("cpu")], found[device]
    for group, perm in wanted.permutation.perms.items():
        differ = float((on_device.permutation.perms[group].cpu() != perm).double().mean())
        # VGG-11 has units that are always 0: they correlate with none, and any of them may be matched with any other.
        assert differ == 0 or (name == "vgg11" and differ < 0.1), f"{group}: {differ:.1%} of the units"
        assert on_device.objective[group] == pytest.approx(wanted.objective[group], rel=ROUNDING)
    assert np.mean(list(wanted.permutation.distance(planted).values())) < 0.2, "nothing was matched"


@pytest.mark.parametrize("name", ["mlp", "resnet20", "vgg11"])
def test_statistics_repair_scores_and_barriers_are_the_cpus(device, name):
    """REPAIR, reset batch norms, layerwise resets, evaluations and the barrier of a line agree with the CPU's to 1e-4."""
    one, other, split, _, _ = pair(name, 256)
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0]

    def everything(where):
        a, b, middle = (copy.deepcopy(network).to(where) for network in (one, other, one))
        data = type(split)(*(None if part is None else part.to(where) for part in (split.x, split.y, split.mean, split.std)))
        batches = [x for x, _ in data.batches(100)]

        def measure(alpha, state):
            middle.load_state_dict(state)
            return evaluate(middle, data, 100)

        scores = line(a.state_dict(), b.state_dict(), alphas, measure)
        states = {}
        half = interpolate(a.state_dict(), b.state_dict(), 0.5)
        middle.load_state_dict(half)
        reset_bn_stats(middle, batches)
        states["reset"] = {key: tensor.clone() for key, tensor in middle.state_dict().items()}
        middle.load_state_dict(half)
        repair(middle, site_statistics(a, batches), site_statistics(b, batches), 0.5, batches)
        states["repair"] = {key: tensor.clone() for key, tensor in middle.state_dict().items()}
        middle.load_state_dict(half)
        states["layerwise"] = {"logits": reset_and_predict(middle, batches), **middle.state_dict()}
        return scores, states

    wanted, wanted_states = everything(torch.device("cpu"))
    scores, states = everything(device)
    for alpha, found, expected in zip(alphas, scores, wanted, strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=ROUNDING), alpha
        assert found.accuracy == pytest.approx(expected.accuracy, abs=100.5 / len(split)), alpha
        assert found.top5 == pytest.approx(expected.top5, abs=100.5 / len(split)), alpha
    rise, expected = (barrier([score.loss for score in each], alphas) for each in (scores, wanted))
    assert expected > 0, "no barrier to compare"
    assert rise == pytest.approx(expected, abs=2 * ROUNDING * max(score.loss for score in wanted))
    for how, state in wanted_states.items():
        for key, tensor in state.items():
            near(states[how][key], tensor, f"{how}: {key}")
