"""Networks are tried before anything is trained: what cannot be trained, moved or evaluated is one line."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from raylth.core.checking import BadNetwork, Uses, check_network, why_not_one_sample
from raylth.core.models import init_model
from tests.core import own_networks as own

USES = Uses(own.CLASSES, ((own.IN,),), is_permuted=True, corrections=("repair", "reset"))


def seeded(make):
    def build(seed):
        torch.manual_seed(seed)
        return make()

    return build


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (own.SharedMemory, "'fc2.weight' and 'fc3.weight' are one tensor under two names"),
        (own.SharedView, "'fc2.weight' and 'fc3.weight' are one tensor under two names"),
        (own.WeightNorm, "fc2.weight is parametrized"),
        (own.Orthogonal, "fc2.weight is parametrized"),
        (own.OldSpectralNorm, "fc2.weight is computed from other tensors"),
        (own.Pruned, "fc2.weight is computed from other tensors"),
        (own.PrunedBias, "head.bias is computed from other tensors"),
        (own.CompiledBlock, "fc2 is wrapped in a OptimizedModule"),
        (lambda: torch.compile(own.Plain()), "the network is wrapped in a OptimizedModule"),
        (lambda: nn.DataParallel(own.Plain()), "the network is wrapped in a DataParallel"),
        (own.Lazy, "'fc1.weight' has no shape yet"),
        (own.UnknownActivation, "aten.special_bessel_j0, whose symmetry is not known .*own_networks.py"),
        (own.UnknownOperation, "the operation aten.special_bessel_j1, whose symmetry is not known .*own_networks.py"),
        (own.Branch, r"control flow that depends on the data \(own_networks.py:\d+: return y if y.sum\(\) > 0"),
        (own.Tuple, "output in training mode is a tuple of 2: it must be its logits alone"),
        (own.TupleInTraining, "output in training mode is a tuple of 2: it must be its logits alone"),
        (own.NamedTuple, "output in training mode is a Outputs of logits, features"),
        (own.Dict, "output in training mode is a dict of logits"),
        (own.TwoInputs, "missing 1 required positional argument: 'y'"),
        (own.Mismatch, r"fails on inputs \(2, 12\): RuntimeError: .*cannot be multiplied .*own_networks.py"),
        (own.TooManyClasses, r"has the shape \(2, 6\), and should have \(2, 5\)"),
        (own.NotFinite, "logits in training mode are not finite"),
        (own.InPlaceBackward, "its backward pass fails: RuntimeError: one of the variables"),
        (own.HalfWeights, "'fc1.weight' is float16: weights are float32"),
        (own.NotPrunable, "no weight that pruning may touch"),
        (own.AlwaysDropout, "differs from call to call"),
        (own.LayerDrop, "differs from call to call|than its traced graph"),
        (own.BatchStatistics, "differs from call to call|forward pass in evaluation mode fails"),
        (own.WritesItsInput, "changes its input in place"),
        (own.Squeezes, r"in evaluation mode has the shape \(5,\), and should have \(1, 5\)"),
        (own.HookOnTheNetwork, "something else than its traced graph"),
        (own.ExtraState, "its state dict holds '_extra_state', a dict"),
        (own.ComplexBuffer, "'frequencies' is complex64, which a store does not keep"),
        (own.AutocastInside, "something else than its traced graph"),
        (own.NoGradient, "its backward pass fails"),
        (own.InfiniteGradient, "the gradient of 'fc2.bias' at its initialisation is not finite"),
        (own.NumpyInit, "does not follow from torch's random state"),
        (own.OwnSeed, "is the same for every seed"),
        (own.Fixed, "none of its units can be permuted"),
        (own.Misleading, "a copy with permuted units computes another function"),
    ],
)  # fmt: skip
def test_what_a_sweep_cannot_work_with_is_one_line(make, message):
    with pytest.raises(BadNetwork, match=message) as caught:
        check_network(seeded(make), USES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [own.Plain, own.Options, own.ValuesAtInit]
    + [
        lambda norm=norm: own.Normalised(norm)
        for norm in (
            nn.BatchNorm1d, own.OwnNorm, own.OwnNormWithInit, own.NormAndActivation, nn.SyncBatchNorm, nn.LayerNorm,
            nn.RMSNorm,
        )
    ],
)  # fmt: skip
def test_what_is_out_of_the_ordinary_and_right_passes_and_leaves_the_random_state(make):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    check_network(seeded(make), USES)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_only_a_permutation_needs_is_asked_for_only_then():
    for make in (own.Branch, own.UnknownActivation, own.Fixed):
        check_network(seeded(make), Uses(own.CLASSES, ((own.IN,),)))
    check_network(seeded(own.Indices), Uses(own.CLASSES, ((own.IN,),)))


class Untraced(own.Plain):
    """Branches on the number of its inputs, which torch.export decides and a tracer cannot."""

    def forward(self, x):
        return super().forward(x) if len(x) else x


class UntracedNorm(own.Normalised):
    """Batch norm behind a branch on the shape."""

    def __init__(self):
        super().__init__(nn.BatchNorm1d)

    def forward(self, x):
        return super().forward(x) if len(x) else x


def test_a_network_that_only_its_export_resolves_can_be_permuted_and_repaired_but_not_reset():
    uses = Uses(own.CLASSES, ((own.IN,),), is_permuted=True, corrections=("repair",))
    for make in (Untraced, UntracedNorm):
        check_network(seeded(make), uses)
    check_network(seeded(Untraced), replace(uses, corrections=("reset", "repair")))
    with pytest.raises(BadNetwork, match="cannot be traced"):
        check_network(seeded(UntracedNorm), replace(uses, corrections=("reset",)))


def test_images_are_tried_in_the_layout_in_which_they_are_trained():
    with pytest.raises(BadNetwork, match=r"view size is not compatible.*Use .reshape.*own_networks.py"):
        check_network(seeded(own.ViewOfAnImage), Uses(own.CLASSES, ((3, 8, 8),)))


def test_the_same_network_each_time_is_refused():
    one = own.Plain()
    with pytest.raises(BadNetwork, match="the same object, or has the same tensors"):
        check_network(lambda seed: one, USES)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "regnet_y_400mf"])
def test_networks_of_torchvision_that_were_trouble_work(name):
    shape = (3, 75, 75) if name == "inception_v3" else (3, 32, 32)
    settings = {"name": f"torchvision:{name}", "num_classes": 4, "in_shape": shape}
    check_network(lambda seed: init_model(seed, **settings), Uses(4, (shape,), is_permuted=True))


def test_a_batch_of_one_sample_is_no_batch_for_batch_norm():
    shapes = [(own.IN,)]
    assert why_not_one_sample(seeded(own.Plain), shapes) is None
    why = why_not_one_sample(seeded(lambda: own.Normalised(own.OwnNorm)), shapes)
    assert "more than 1 value per channel" in why
    assert why_not_one_sample(seeded(lambda: own.Normalised(nn.LayerNorm)), shapes) is None
