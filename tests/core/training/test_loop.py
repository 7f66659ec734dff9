import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raylth.core.data.augment import Augmentation, flip_and_crop
from raylth.core.data.dataset import ArraySplit
from raylth.core.masks import check_mask, full_mask
from raylth.core.models import init_model
from raylth.core.pruning import prune_global_magnitude
from raylth.core.training.adamw import AdamW
from raylth.core.training.loop import Diverged, Recipe, evaluate, train, train_together
from raylth.core.training.packing import Program
from raylth.core.training.schedule import crop_side, even_batch_size, learning_rate, steps_per_epoch
from raylth.core.training.sgd import SGD
from raylth.core.training.step import cross_entropies


def random_split(in_shape, count=70, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *in_shape, generator=generator)
    return ArraySplit(x, torch.randint(0, 10, (count,), generator=generator))


def test_masks_hold_through_momentum_weight_decay_and_reload(network_settings, tmp_path):
    model = init_model(0, **network_settings)
    split = random_split(network_settings["in_shape"])
    mask = prune_global_magnitude(model.state_dict(), full_mask(model), fraction=0.8)
    broken_during_training = []

    def spy(module, args):
        state = module.state_dict()
        broken_during_training.extend(n for n, alive in mask.items() if state[n][~alive].count_nonzero())

    hook = model.register_forward_pre_hook(spy)
    train(model, split, Recipe(2, lr=0.05, batch_size=32, momentum=0.9, weight_decay=5e-2), seed=1, mask=mask)
    hook.remove()
    assert not broken_during_training
    again = init_model(5, **network_settings)
    again.load_state_dict(model.state_dict())
    check_mask(again.state_dict(), mask)
    dense = init_model(0, **network_settings).state_dict()
    assert all(not torch.equal(dense[name][mask[name]], model.state_dict()[name][mask[name]]) for name in mask)


def test_batch_norm_stays_finite_where_a_unit_is_fully_pruned():
    model = init_model(0, "resnet20", width=0.25, num_classes=10, in_shape=(3, 8, 8))
    mask = full_mask(model)
    mask["layer1.0.conv1.weight"][0] = False
    mask["layer2.0.conv2.weight"][:] = False
    split = random_split((3, 8, 8))
    train(model, split, Recipe(30, lr=0.05, batch_size=32), seed=1, mask=mask)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert math.isfinite(evaluate(model, split)[0])


def test_a_masked_network_trains_as_the_smaller_network_would():
    """Removing hidden units by mask equals training the network without them: an independent reference."""
    small = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 10))
    big = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 10))
    big.load_state_dict({**big.state_dict(), "2.bias": small[2].bias.detach()})
    with torch.no_grad():
        big[0].weight[:3], big[0].bias[:3], big[2].weight[:, :3] = small[0].weight, small[0].bias, small[2].weight
    mask = {"0.weight": torch.ones(5, 6, dtype=torch.bool), "2.weight": torch.ones(10, 5, dtype=torch.bool)}
    mask["0.weight"][3:] = False
    mask["2.weight"][:, 3:] = False
    split = random_split((6,))
    for model, its_mask in ((small, None), (big, mask)):
        train(model, split, Recipe(3, lr=0.1, batch_size=16), seed=4, mask=its_mask)
    torch.testing.assert_close(big[2].weight[:, :3], small[2].weight, rtol=1e-4, atol=1e-6)


def test_training_is_reproducible_and_the_order_depends_on_the_seed_alone():
    split = random_split((40,))
    results = []
    for seed in (1, 1, 2):
        model = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,))
        torch.manual_seed(len(results))  # the global state must not matter
        losses = train(model, split, Recipe(3, lr=0.1, batch_size=16), seed=seed)
        results.append((losses, model.state_dict()))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][n], results[1][1][n]) for n in results[0][1])
    assert results[0][0] != results[2][0]


@pytest.mark.parametrize("name", ["resnet20", "mlp"])
def test_left_over_samples_move_nothing(name):
    """5 batches of 32 and 8 samples more: none of the 8 is seen, and the 5 batches are those of the whole order."""
    shape = (3, 8, 8) if name == "resnet20" else (40,)
    split, model = random_split(shape, count=5 * 32 + 8), init_model(0, name, width=0.25, num_classes=10, in_shape=shape)
    reference, sizes, steps = copy.deepcopy(model), [], []
    hook = model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    losses = train(
        model, split, Recipe(2, lr=0.002, batch_size=32), seed=1, on_step=lambda epochs, step, _: steps.append((epochs, step))
    )
    hook.remove()
    assert sizes == [32] * 10
    assert steps == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    optimizer = torch.optim.SGD(reference.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    reference.train()
    expected = []
    for epoch in range(2):
        found = []
        for step, (x, y) in enumerate(list(split.epoch([1], epoch, 32))[:5]):
            optimizer.param_groups[0]["lr"] = learning_rate(5 * epoch + step, total_steps=10, peak=0.002)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(reference(x), y)
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        expected.append(sum(found) / 5)
    assert losses == pytest.approx(expected, rel=1e-3)
    for key, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=1e-2, atol=1e-3)


def test_an_epochs_only_batch_is_never_left_out():
    split, sizes = random_split((40,), count=20), []
    model = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,))
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    train(model, split, Recipe(2, lr=0.01, batch_size=32), seed=1)
    assert sizes == [20, 20]


def test_a_rate_that_changes_once_an_epoch_is_that_of_torchs_cosine_stepped_by_epoch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.08)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for epoch in range(10):
        rates = [learning_rate(7 * epoch + step, total_steps=70, peak=0.08, hold_steps=7) for step in range(7)]
        assert rates == pytest.approx([optimizer.param_groups[0]["lr"]] * 7)
        optimizer.step()
        cosine.step()
    split, rates = random_split((40,)), []
    model = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raylth.core.training.sgd.SGD.step", lambda self, rate: rates.append(float(rate)))
        train(model, split, Recipe(4, lr=1.0, batch_size=16, lr_interval="epoch"), seed=1)
    assert len(set(rates)) == 4
    assert rates[0] == 1.0


@given(st.integers(1, 300_000), st.integers(1, 600))
def test_no_batch_of_statistics_is_less_than_half_of_the_others(samples, most):
    size = even_batch_size(samples, most)
    assert 1 <= size <= min(samples, most)
    assert samples % size == 0 or samples % size >= size / 2
    assert size >= min(samples, most) / 2, "and they do not become many"


def test_cosine_with_warmup_against_a_hand_made_table():
    rates = [learning_rate(step, total_steps=6, peak=1.0, warmup_steps=2) for step in range(6)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466])
    assert learning_rate(6, total_steps=6, peak=1.0) == pytest.approx(0.0)
    assert [steps_per_epoch(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [steps_per_epoch(n, 4, drop_last=True) for n in (0, 1, 4, 5, 7, 8)] == [0, 1, 1, 1, 1, 2]


def test_crops_grow_as_in_ffcvs_training_of_resnet_50():
    """160 pixels to epoch 65 of 88, 192 from epoch 76 on: one size between them, in multiples of 32."""
    ramp = (65 / 88, 76 / 88)
    sides = [crop_side(epoch, total_epochs=88, first=160, last=192, ramp=ramp) for epoch in range(88)]
    assert sides == [160] * 71 + [192] * 17
    grown = [crop_side(epoch, total_epochs=10, first=96, last=224, ramp=(0.0, 1.0)) for epoch in range(11)]
    assert grown == sorted(grown)
    assert set(grown) == {96, 128, 160, 192, 224}
    assert crop_side(9, total_epochs=10, first=50, last=50, ramp=(0.2, 0.9)) == 50


def test_steps_against_a_hand_made_table():
    """Two epochs of warm-up, a tenth every three epochs, two steps an epoch."""
    rates = [
        learning_rate(step, total_steps=16, peak=1.0, warmup_steps=4, decay_steps=6, decay_factor=0.1) for step in range(16)
    ]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, *[0.1] * 6, *[0.01] * 4])


def test_a_rewound_schedule_is_the_end_of_the_whole_one():
    """Training 2 + 2 epochs, the second half rewound, sees the learning rates and orders of 4 epochs at once."""
    split, whole = random_split((40,)), Recipe(4, lr=0.1, batch_size=16, momentum=0.0)
    model = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,))
    halves = copy.deepcopy(model)
    train(model, split, whole, seed=1)
    train(halves, split, Recipe(2, lr=0.1, batch_size=16, momentum=0.0, schedule_epochs=4), seed=1)
    train(halves, split, Recipe(2, 0.1, 16, 0.0, schedule_epochs=4, schedule_start=2), seed=1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), halves.parameters(), strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_update_is_that_of_torch(momentum):
    """Tensors of sizes that fill registers and of others, one of them without a gradient."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3), nn.Linear(2, 2))
    theirs = copy.deepcopy(ours)
    sgd = SGD(Program([ours]), momentum, 0.01, [None])
    reference = torch.optim.SGD(theirs.parameters(), lr=1.0, momentum=momentum, weight_decay=0.01)
    for rate in (0.1, 0.05, 0.02):
        x = torch.randn(8, 16)
        for model, optimizer in ((ours, sgd), (theirs, reference)):
            optimizer.zero_grad()
            model[1](model[0](x)).square().mean().backward()
        sgd.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_that_of_torch(decay):
    """Tensors of sizes that fill registers and of others, one of them without a gradient."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3), nn.Linear(2, 2))
    theirs = copy.deepcopy(ours)
    adamw = AdamW(Program([ours]), (0.8, 0.95), 1e-7, decay, [None])
    reference = torch.optim.AdamW(theirs.parameters(), lr=1.0, betas=(0.8, 0.95), eps=1e-7, weight_decay=decay)
    for rate in (0.1, 0.05, 0.02):
        x = torch.randn(8, 16)
        for model, optimizer in ((ours, adamw), (theirs, reference)):
            optimizer.zero_grad()
            model[1](model[0](x)).square().mean().backward()
        adamw.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


ADAMW = Recipe(2, lr=0.003, batch_size=16, optimizer="adamw", weight_decay=0.1, momentum=0.0)


def test_pruned_weights_stay_zero_under_adamw_and_members_have_the_bits_that_they_have_alone():
    split, seeds = random_split((40,)), [1, 2, 3]
    models = [init_model(seed, "mlp", width=0.25, num_classes=10, in_shape=(40,)) for seed in seeds]
    masks = [random_mask(full_mask(model), seed) for seed, model in enumerate(models)]
    alone = copy.deepcopy(models)
    train_together(Program(models), split, ADAMW, seeds=seeds, masks=masks)
    for model, other, seed, mask in zip(models, alone, seeds, masks, strict=True):
        train(other, split, ADAMW, seed=seed, mask=mask)
        check_mask(other.state_dict(), mask)
        check_mask(model.state_dict(), mask)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def random_mask(mask, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(alive.shape, generator=generator) < 0.5 for name, alive in mask.items()}


def test_divergence_is_named():
    split = random_split((40,))
    model = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,))
    with pytest.raises(Diverged, match="diverged in epoch"):
        train(model, split, Recipe(20, lr=1e4, batch_size=16), seed=1)


def test_evaluate_is_a_mean_over_samples_and_keeps_the_mode():
    model = nn.Linear(4, 10).train()
    split = random_split((4,), count=7)
    loss, accuracy, _ = evaluate(model, split, batch_size=3)
    logits = model(split.x).detach()
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, split.y)), rel=1e-5)
    assert accuracy == pytest.approx(100 * float((logits.argmax(1) == split.y).float().mean()))
    assert model.training


def test_flip_and_crop_equals_a_loop_over_images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (20, 3, 8, 6), generator=generator).to(torch.uint8)
    draws = Augmentation.draw(20, seed=3, epoch=1, device=torch.device("cpu"))
    assert draws.flip.any()
    assert not draws.flip.all()
    found = flip_and_crop(x, draws.flip, draws.top, draws.left)
    for i in range(20):
        padded = torch.zeros(3, 16, 14, dtype=torch.uint8)
        padded[:, 4:12, 4:10] = x[i]
        top, left = int(draws.top[i]), int(draws.left[i])
        expected = padded[:, top : top + 8, left : left + 6]
        assert torch.equal(found[i], expected.flip(-1) if draws.flip[i] else expected)


def test_a_sample_is_augmented_alike_in_any_batch():
    x = torch.arange(4 * 3 * 8 * 8, dtype=torch.float32).reshape(4, 3, 8, 8)
    draws = Augmentation.draw(4, seed=0, epoch=0, device=torch.device("cpu"))
    one = draws(x[[2]], torch.tensor([2]))
    assert torch.equal(one[0], draws(x, torch.arange(4))[2])


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_several_networks_is_torchs_of_each(classes, smoothing):
    """Whatever layout it is computed in; gradients are laid out as the logits are, so that layers below keep their bits."""
    logits, labels = torch.randn(3, 20, classes, requires_grad=True), torch.randint(0, classes, (3, 20))
    found = cross_entropies(logits, labels, smoothing)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.is_contiguous()
    for member in range(3):
        alone = logits[member].detach().requires_grad_()
        expected = F.cross_entropy(alone, labels[member], label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(found[member], expected)
        torch.testing.assert_close(gradient[member], torch.autograd.grad(expected.sum(), alone)[0])
