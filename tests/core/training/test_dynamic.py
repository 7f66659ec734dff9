"""Trainings whose masks change: against a plain loop, resumed, in packs, and where one diverges."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from raylth.common.seeding import derive_seed
from raylth.core.masks import full_mask, num_alive
from raylth.core.models import init_model
from raylth.core.pruning import FINDERS, DynamicFinder, StartInputs, UpdateInputs
from raylth.core.training.dynamic import DynamicSteps, MaskUpdates
from raylth.core.training.engines.program import make_program
from raylth.core.training.loop import Diverged, train_together
from raylth.core.training.packing import Program
from raylth.core.training.recipe import Recipe
from tests.core.training.test_loop import random_split

RECIPE = Recipe(epochs=4, lr=0.05, batch_size=16)  # 4 steps an epoch of 64 samples
EVERY, UNTIL = 3, 13  # changes after 3, 6, 9 and 12 of 16 steps


def network(seed=0):
    return init_model(seed, "mlp", width=0.25, num_classes=10, in_shape=(40,))


def planned(name, model, seed=3):
    """How a network's mask changes, and the mask that it starts with."""
    full, finder = full_mask(model), FINDERS[name] if isinstance(name, str) else name
    wanted = num_alive(full) - round(0.8 * num_alive(full))
    updates = MaskUpdates(finder, "it", every=EVERY, until=UNTIL, num_alive=wanted, fraction=0.3, seed=seed)
    return updates, finder.start(StartInputs(full, wanted, seed))


def trained(name, seeds=(0,), recipe=RECIPE, networks=None, **options):
    networks = networks or [network(seed) for seed in seeds]
    plans = [planned(name, model, seed) for seed, model in zip(seeds, networks, strict=True)]
    masks = [mask for _, mask in plans]
    outcomes = train_together(
        Program(networks),
        random_split((40,), 64),
        recipe,
        seeds=seeds,
        masks=masks,
        updates=[each for each, _ in plans],
        **options,
    )
    return networks, masks, outcomes


def plain_loop(name, model, batches, rate, momentum=0.9, decay=5e-4):
    """What the papers describe, one weight after another, with torch's optimizer."""
    updates, mask = planned(name, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
    weights = {layer: dict(model.named_parameters())[layer] for layer in mask}

    def prune():
        for layer, alive in mask.items():
            weights[layer].data[~alive] = 0.0

    prune()
    for taken, (x, y) in enumerate(batches, start=1):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        number = taken // EVERY if taken % EVERY == 0 and taken < UNTIL else None
        if number is None or not updates.finder.replaces_step:
            optimizer.step()
            prune()
        if number is None:
            continue
        values = {layer: weight.detach().clone() for layer, weight in weights.items()}
        slopes = {layer: weight.grad.clone() for layer, weight in weights.items()}
        given = UpdateInputs(
            values,
            slopes,
            mask,
            updates.num_alive,
            number,
            4,
            taken / UNTIL,
            0.3,
            derive_seed(updates.seed, "update", number),
        )
        new = updates.finder.update(given)
        for layer, alive in mask.items():
            for place in (new[layer] & ~alive).nonzero().tolist():
                optimizer.state[weights[layer]]["momentum_buffer"][tuple(place)] = 0.0
        mask = new
        prune()
    return mask


def batches_of(count=16):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 40, generator=generator), torch.randint(10, (16,), generator=generator)) for _ in range(count)]


@pytest.mark.parametrize("name", ["gmp", "set", "rigl"])
def test_it_is_the_plain_loop(name):
    model, expected = network(), network()
    updates, mask = planned(name, model)
    steps = DynamicSteps(Program([model]), RECIPE, [mask], torch.device("cpu"), [updates])
    for x, y in batches_of():
        steps(x, y, 0.05, 16)
    wanted = plain_loop(name, expected, batches_of(), 0.05)
    for layer, alive in mask.items():
        assert torch.equal(alive, wanted[layer])
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_grown_weights_start_at_zero_without_momentum():
    model = network()
    updates, mask = planned("rigl", model)
    steps = DynamicSteps(Program([model]), RECIPE, [mask], torch.device("cpu"), [updates])
    batches = batches_of()
    for x, y in batches[: EVERY - 1]:
        steps(x, y, 0.05, 16)
    before = {layer: alive.clone() for layer, alive in mask.items()}
    weights = {layer: model.get_parameter(layer).detach().clone() for layer in mask}
    steps(*batches[EVERY - 1], 0.05, 16)
    (state,) = steps.momentum()
    grown = {layer: alive & ~before[layer] for layer, alive in mask.items()}
    assert sum(map(torch.count_nonzero, grown.values())) > 0
    for layer, new in grown.items():
        assert not state[layer][new].any()
        assert not model.get_parameter(layer)[new].any()
        kept = mask[layer] & before[layer]
        assert state[layer][kept].any()
        assert torch.equal(model.get_parameter(layer)[kept], weights[layer][kept])  # which stay where they are in this step


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["gmp", "set", "rigl"])
def test_a_resumed_training_has_the_same_bits(name, optimizer):
    recipe = replace(RECIPE, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.01)
    saved = {}

    def keep(completed, step, snapshots):
        if (completed, step) in ((1, 2), (2, 0), (3, 0)):
            saved[completed, step] = snapshots()

    (model,), (mask,), _ = trained(name, recipe=recipe, on_step=keep)
    assert num_alive(mask) == planned(name, network())[0].num_alive
    for states in saved.values():
        (again,), (found,), _ = trained(name, recipe=recipe, states=states)
        assert all(torch.equal(alive, found[layer]) for layer, alive in mask.items())
        assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", ["gmp", "set", "rigl"])
def test_a_member_of_a_pack_is_as_it_would_be_alone(name):
    together, masks, _ = trained(name, seeds=(0, 1, 2))
    for seed in range(3):
        (alone,), (mask,), _ = trained(name, seeds=(seed,))
        assert all(torch.equal(alive, masks[seed][layer]) for layer, alive in mask.items())
        for one, other in zip(together[seed].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gmp", "set", "rigl"])
def test_one_that_diverges_leaves_the_others_alone(name):
    networks = [network(0), network(1)]
    with torch.no_grad():
        networks[0].head.bias.fill_(float("inf"))
    _, masks, outcomes = trained(name, seeds=(0, 1), networks=networks)
    assert isinstance(outcomes[0], Diverged)
    (_,), (mask,), _ = trained(name, seeds=(1,))
    assert all(torch.equal(alive, masks[1][layer]) for layer, alive in mask.items())


def test_what_a_finder_returns_is_checked():
    finder = DynamicFinder(FINDERS["rigl"].start, lambda inputs: {}, "")
    with pytest.raises(TypeError, match="mask finder it: expected a mask of the layers fc1"):
        trained(finder)


def test_other_engines_are_refused():
    updates, mask = planned("rigl", network())
    with pytest.raises(ValueError, match="trained with the engine 'eager', not 'graph'"):
        train_together(
            make_program([network()], "graph"), random_split((40,), 64), RECIPE, seeds=[0], masks=[mask], updates=[updates]
        )
