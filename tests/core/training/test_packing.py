"""Several networks as one program: each member is trained as it would be alone, and none disturbs another."""

import copy
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import densenet121
from torchvision.models.resnet import BasicBlock, ResNet

from raylth.core.masks import full_mask
from raylth.core.models import init_model
from raylth.core.precision import fastest_precision
from raylth.core.pruning import prune_global_magnitude
from raylth.core.training import pack_tuning
from raylth.core.training.engines.program import make_program
from raylth.core.training.loop import Diverged, Recipe, evaluate, evaluate_together, train, train_together
from raylth.core.training.pack_tuning import fastest_pack
from raylth.core.training.packing import NotPackable, Pack, Program
from tests.core import own_networks as own
from tests.core.training.test_loop import random_split


class Overwritten(nn.Module):
    """Activations in place whose results are read by another name."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.head = (nn.Linear(40, 40) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        torch.relu_(x := self.first(x))
        F.relu(y := self.second(x), True)
        self.relu(z := self.third(y))
        return self.head(z)


class WithNorm(nn.Module):
    """Batch norm after linear layers, and an activation module."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(40, 12), nn.BatchNorm1d(12), nn.LeakyReLU(), nn.Linear(12, 10))

    def forward(self, x):
        return self.body(x)


def seeded(build, seed):
    torch.manual_seed(seed)
    return build()


NETWORKS = {
    "mlp": ((40,), lambda seed: init_model(seed, "mlp", width=0.25, num_classes=10, in_shape=(40,))),
    "resnet20": ((3, 8, 8), lambda seed: init_model(seed, "resnet20", width=0.25, num_classes=10, in_shape=(3, 8, 8))),
    "vgg11": ((3, 32, 32), lambda seed: init_model(seed, "vgg11", width=0.125, num_classes=10, in_shape=(3, 32, 32))),
    "a ResNet of torchvision": ((3, 32, 32), partial(seeded, lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10))),
    "batch norm of vectors": ((40,), partial(seeded, WithNorm)),
    "asymmetric mlp": (
        (40,),
        lambda seed: init_model(seed, "mlp", width=0.25, num_classes=10, in_shape=(40,), options={"asymmetric": True}),
    ),
}
# 5 steps an epoch, 20 in all; few enough and small enough that rounding does not grow beyond the tolerances
RECIPE = Recipe(4, lr=0.002, batch_size=32, label_smoothing=0.1, drop_last=False)


def trained_alone(name, size, count=150, masks=None, recipe=RECIPE):
    shape, build = NETWORKS[name]
    split, networks, losses = random_split(shape, count), [build(seed) for seed in range(size)], []
    for number, network in enumerate(networks):
        mask = masks[number] if masks else None
        augment = "flip_crop" if len(shape) == 3 else "none"
        losses.append(train(network, split, recipe, seed=10 + number, augment=augment, mask=mask))
    return split, networks, losses


def masks_for(name, size):
    return [
        prune_global_magnitude(network.state_dict(), full_mask(network), fraction=0.5 + 0.1 * seed)
        for seed, network in enumerate(NETWORKS[name][1](seed) for seed in range(size))
    ]


def together(name, size, split, masks=None, recipe=RECIPE, **options):
    shape, build = NETWORKS[name]
    networks = [build(seed) for seed in range(size)]
    program = Program(networks)
    found = train_together(
        program, split, recipe, seeds=[10 + number for number in range(size)],
        augment="flip_crop" if len(shape) == 3 else "none", masks=masks or [None] * size, **options,
    )  # fmt: skip
    return program, networks, found


def assert_close(one, other, start, name):
    """Two trainings end at the same place: apart by less than a tenth of what one has moved, tensor by tensor."""
    for key, tensor in one.state_dict().items():
        apart = float((other.state_dict()[key].double() - tensor.double()).norm())
        moved = float((tensor.double() - start.state_dict()[key].double()).norm())
        assert apart <= 0.1 * moved + 1e-6, f"{name}: {key}: apart by {apart}, moved by {moved}"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_member_is_trained_as_it_would_be_alone(name):
    """Its own order, augmentation and mask; weights, batch-norm statistics, losses and accuracies agree to rounding."""
    masks = masks_for(name, 3)
    split, alone, losses = trained_alone(name, 3, masks=masks)
    program, networks, found = together(name, 3, split, masks)
    for number in range(3):
        assert found[number] == pytest.approx(losses[number], rel=1e-3)
        assert_close(alone[number], networks[number], NETWORKS[name][1](number), name)
        for layer, alive in masks[number].items():
            assert not networks[number].state_dict()[layer][~alive].any()
    measured = evaluate_together(program, split, batch_size=64)
    for (loss, accuracy, _), network, lone in zip(measured, networks, alone, strict=True):
        expected = evaluate(network, split)
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert accuracy == pytest.approx(expected[1], abs=0.7), "one sample of 150 at most, where two classes tie"
        assert loss == pytest.approx(evaluate(lone, split)[0], rel=1e-3)


def test_a_member_that_diverges_leaves_the_others_alone():
    split, alone, _ = trained_alone("mlp", 2)
    bad = NETWORKS["mlp"][1](2)
    with torch.no_grad():
        bad.fc1.weight.mul_(1e20)
    networks = [NETWORKS["mlp"][1](0), bad, NETWORKS["mlp"][1](1)]
    found = train_together(Program(networks), split, RECIPE, seeds=[10, 5, 11], masks=[None] * 3)
    assert isinstance(found[1], Diverged)
    assert "epoch 1" in str(found[1])
    assert_close(alone[0], networks[0], NETWORKS["mlp"][1](0), "first")
    assert_close(alone[1], networks[2], NETWORKS["mlp"][1](1), "third")


@pytest.mark.parametrize("stop_at", [(1, 2), (2, 0)])
def test_a_resumed_pack_has_the_same_bits(stop_at):
    split = random_split((3, 8, 8), 150)
    _, whole, losses = together("resnet20", 2, split)
    states = []

    class Stopped(Exception):
        pass

    def stop(epochs, step, snapshots):
        if (epochs, step) == stop_at:
            states.extend(snapshots())
            raise Stopped

    with pytest.raises(Stopped):
        together("resnet20", 2, split, on_step=stop)
    _, resumed, again = together("resnet20", 2, split, states=states)
    assert again == losses
    for one, other in zip(whole, resumed, strict=True):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_the_networks_keep_what_they_had_when_a_training_is_stopped():
    split = random_split((40,), 150)
    networks = [NETWORKS["mlp"][1](seed) for seed in range(2)]
    before = copy.deepcopy(networks)

    def stop(epochs, losses):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train_together(Program(networks), split, RECIPE, seeds=[1, 2], masks=[None] * 2, on_epoch=stop)
    for one, other in zip(before, networks, strict=True):
        assert any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_an_activation_whose_result_is_read_by_another_name_is_kept_in_a_pack():
    networks, x = [seeded(Overwritten, seed) for seed in range(2)], torch.randn(6, 2, 40)
    with torch.no_grad():
        logits = Program(networks)(x.flatten(0, 1), 6)
        for number, network in enumerate(networks):
            torch.testing.assert_close(logits[number], network(x[:, number]))


def test_convolutions_of_members_have_the_entries_that_their_architecture_fixes():
    """Logits and gradients in float64: a training amplifies the rounding of so large fixed entries."""
    shape, options = (3, 8, 8), {"asymmetric": True}
    networks = [
        init_model(seed, "resnet20", width=0.25, num_classes=10, in_shape=shape, options=options).double()
        for seed in range(3)
    ]
    x = torch.randn(5, 3, *shape, generator=torch.Generator().manual_seed(0)).double()
    pack = Pack(networks)
    logits = pack(x)
    logits.square().sum().backward()
    gradients = dict(pack.named_parameters())
    for number, network in enumerate(networks):
        found = network(x[:, number])
        torch.testing.assert_close(logits[number], found)
        found.square().sum().backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(gradients[name].grad[number], parameter.grad, rtol=1e-8, atol=1e-9)


def test_what_cannot_be_packed_is_named():
    with pytest.raises(NotPackable, match=r"Dropout \(1\)"):
        Pack([nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(2)])
    with pytest.raises(NotPackable, match="the operation cat"):
        Pack([densenet121(num_classes=10) for _ in range(2)])


class OtherInEvaluation(own.Plain):
    def forward(self, x):
        return self.head(self.fc1(x) if self.training else torch.relu(self.fc1(x)))


class Spare(own.Plain):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Hooked(own.Plain):
    def __init__(self):
        super().__init__()
        self.fc2.register_forward_hook(lambda module, args, out: 2 * out)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (own.SharedModule, "one tensor under two names"),
        (own.SharedWeight, "one tensor under two names"),
        (own.WeightNorm, "parametrized"),
        (own.Branch, "cannot be traced"),
        (OtherInEvaluation, "something else in training than in evaluation"),
        (Hooked, "hooks"),
        (own.HookOnTheNetwork, "hooks"),
        (Spare, "tensors that its forward pass does not use"),
    ],
)
def test_what_would_be_another_network_in_a_pack_is_not_packed(make, message):
    with pytest.raises(NotPackable, match=message):
        Pack([make(), make()])


def test_a_subclass_of_a_layer_is_packed_as_its_parent():
    networks = [own.Normalised(own.OwnNorm) for _ in range(3)]
    x = torch.randn(4, own.IN)
    found = Pack(networks).train()(x[:, None].expand(-1, 3, -1))
    expected = torch.stack([network.train()(x) for network in networks])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("precision", dict.fromkeys(["float32", fastest_precision()]))
@pytest.mark.parametrize("name", ["mlp", "asymmetric mlp"])
def test_an_mlp_has_the_same_bits_alone_and_in_any_company(name, precision):
    """On a CPU: how trainings are dealt out to workers must not show in a sweep's numbers."""
    masks, recipe = masks_for(name, 5), replace(RECIPE, precision=precision)
    split, alone, _ = trained_alone(name, 5, masks=masks, recipe=recipe)
    for size in (2, 3, 5):
        _, networks, _ = together(name, size, split, masks[:size], recipe)
        for number, network in enumerate(networks):
            expected = alone[number].state_dict()
            assert all(torch.equal(expected[name], tensor) for name, tensor in network.state_dict().items()), (size, number)


@pytest.mark.parametrize("name", ["mlp", "resnet20", "batch norm of vectors"])
def test_in_bf16_a_pack_trains_about_as_in_float32_and_weights_stay_float32(name):
    """The products differ from float32 by far less than training moves, and differ at all; alone and together."""
    split = random_split(NETWORKS[name][0], 150)
    recipe = replace(RECIPE, precision="bf16")
    networks, alone, exact = ([NETWORKS[name][1](seed) for seed in range(2)] for _ in range(3))
    found = train_together(Program(networks), split, recipe, seeds=[0, 1], masks=[None] * 2)
    for seed in range(2):
        losses = train(exact[seed], split, RECIPE, seed=seed)
        assert found[seed] == pytest.approx(losses, rel=0.02)
        assert found[seed] != losses
        assert train(alone[seed], split, recipe, seed=seed) == pytest.approx(losses, rel=0.02)
    for network in (*networks, *alone):
        assert {tensor.dtype for tensor in network.state_dict().values()} <= {torch.float32, torch.int64}


class Readings(TorchDispatchMode):
    """Counts what would make the host wait for a device: values that are read, shapes that depend on values."""

    WAITS = ("nonzero", "_local_scalar_dense", "is_nonzero", "masked_select", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.WAITS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mlp", "resnet20"])
def test_nothing_waits_for_the_device_inside_an_epoch(name):
    masks, split = masks_for(name, 2), random_split(NETWORKS[name][0], 150)
    inside, at = {}, []
    with Readings() as readings:

        def step(epochs, step, snapshots):
            if step > 1:
                inside[epochs, step] = readings.found[at[-1] :]
            at.append(len(readings.found))

        together(name, 2, split, masks, on_step=step)
    assert len(inside) == 4 * 3, "steps 2 to 4 of each epoch"
    assert not any(inside.values()), inside


def test_the_fastest_pack_is_one_of_those_measured_and_one_for_what_cannot_be_packed():
    split = random_split((40,), 512)
    found = fastest_pack(lambda: NETWORKS["mlp"][1](0), split, RECIPE)
    rates = found.rates["eager"]
    assert rates[found.size] >= 0.9 * max(rates.values())
    assert list(rates) == [1, 2, 4, 8, 16, 32][: len(rates)]
    unpackable = lambda: nn.Sequential(nn.Linear(40, 10), nn.Dropout(0.5))  # noqa: E731
    assert fastest_pack(unpackable, split, RECIPE).size == 1


def test_measuring_counts_neither_what_sets_a_training_up_nor_one_size_that_was_disturbed(monkeypatch):
    def train(program, samples, recipe, *, on_epoch, **how):
        time.sleep(0.01 * program.size)
        for epoch in range(1, recipe.epochs):
            time.sleep(0.04 if program.size == 4 else 0.004)
            on_epoch(epoch, [0.0] * program.size)

    monkeypatch.setattr(pack_tuning, "train_together", train)
    found = fastest_pack(lambda: NETWORKS["mlp"][1](0), random_split((40,), 512), RECIPE)
    rates = found.rates["eager"]
    assert found.size == 32
    assert rates[4] < rates[2]
    assert rates[32] / rates[1] == pytest.approx(32, rel=0.2)


@pytest.mark.parametrize(
    ("shape", "engine", "most"), [((1, 4, 4), "eager", 333), ((1, 4, 4), "graph", 1000), ((16,), "eager", 1000)]
)
def test_a_pack_is_evaluated_on_no_more_images_at_a_time_than_one_network(shape, engine, most):
    """K times a lone network's batch would take twice the memory of a training step, met only after the last epoch."""
    seen, build = [], partial(seeded, lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 10)))
    program = make_program([build(seed) for seed in range(3)], engine)
    split = random_split(shape, 1500)
    original = F.cross_entropy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", lambda x, *rest, **more: seen.append(len(x)) or original(x, *rest, **more))
        found = evaluate_together(program, split)
    assert max(seen) == most
    for score, network in zip(found, program.networks, strict=True):
        assert score == pytest.approx(evaluate(network, split), rel=1e-5)


def test_measuring_evaluates_a_batch_and_ends_where_memory_ends_under_any_name(monkeypatch):
    evaluated = []

    def evaluate(program, split):
        evaluated.append((program.size, len(split)))
        if program.size == 4:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(pack_tuning, "evaluate_together", evaluate)
    monkeypatch.setattr(pack_tuning, "_time", lambda program, *rest: 1.0)
    found = fastest_pack(lambda: NETWORKS["mlp"][1](0), random_split((40,), 512), RECIPE)
    assert evaluated == [(1, 128), (2, 128), (4, 128)]
    assert (found.size, set(found.rates["eager"])) == (2, {1, 2})


def test_the_fastest_engine_is_chosen_if_it_is_proved_and_worth_it(monkeypatch):
    """A tie goes to the simpler one; the networks of a kind that a `Pack` cannot stack are packed by the others."""
    rates = {"eager": 100.0, "graph": 104.0, "compiled": 120.0, "stacked": 200.0}
    monkeypatch.setattr(pack_tuning, "_time", lambda program, *rest: 128 * program.size / rates[program.engine])
    monkeypatch.setattr(pack_tuning, "make_program", lambda nets, engine: SimpleNamespace(size=len(nets), engine=engine))
    monkeypatch.setattr(pack_tuning, "evaluate_together", lambda *_: None)
    passed_over = ["engine 'stacked' is not used: after 20 steps ...", "engine 'graph' ..."]
    monkeypatch.setattr(pack_tuning, "usable", lambda e, *_: ("eager", passed_over) if e == "stacked" else (e, []))
    split, build = random_split((40,), 512), partial(NETWORKS["mlp"][1], 0)
    found = fastest_pack(build, split, RECIPE, engines=("eager", "graph", "compiled", "stacked"), sizes=(1, 2))
    assert (found.size, found.engine, list(found.notes)) == (1, "compiled", passed_over[:1])
    assert set(found.rates) == {"eager", "graph", "compiled"}
    rates["compiled"] = 104.9
    assert fastest_pack(build, split, RECIPE, engines=("eager", "graph", "compiled"), sizes=(3,)).engine == "eager"


def test_a_pack_of_the_size_that_was_asked_for_is_measured_in_halves_until_it_fits(monkeypatch):
    def evaluate(program, split):
        if program.size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(pack_tuning, "evaluate_together", evaluate)
    monkeypatch.setattr(pack_tuning, "_time", lambda program, *rest: 1.0)
    found = fastest_pack(lambda: NETWORKS["mlp"][1](0), random_split((40,), 512), RECIPE, sizes=(8,))
    assert (found.size, set(found.rates["eager"])) == (2, {2})
    assert [line.split(" with ")[0] for line in found.notes] == [f"a pack of {n} ran out of memory" for n in (8, 4)]


def test_an_engine_that_was_asked_for_and_is_not_proved_is_measured_as_what_it_falls_back_to(monkeypatch):
    monkeypatch.setattr(pack_tuning, "usable", lambda engine, *_: ("graph", ["engine 'stacked' ..."]))
    found = fastest_pack(lambda: NETWORKS["mlp"][1](0), random_split((40,), 512), RECIPE, engines=("stacked",), sizes=(2,))
    assert (found.size, found.engine, list(found.rates)) == (2, "graph", ["graph"])
