"""The permutations that keep a mask's pattern: no others are in the restricted symmetry, and none is missing."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raylth.core.masks import full_mask
from raylth.core.matching import match_activations, match_weights
from raylth.core.models import build_model
from raylth.core.permutation import Permutation, derive_spec, identity_permutation, random_permutation, restrict, unrestricted
from raylth.core.pruning import Structure, keeps, nearest_alive, prune_structured
from tests.core.permutation.test_attention import Grouped, Transformer

TWO_OF_FOUR = Structure("nm", n=2, m=4)
STRUCTURES = [
    TWO_OF_FOUR,
    Structure("nm", n=1, m=2),
    Structure("block", rows=2, columns=4),
    Structure("block", rows=4, columns=2),
]


class Concatenated(nn.Module):
    """Runs of 4 fall across the two halves, of 6 channels each, and into the halves of another."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 6, 1) for _ in range(3))
        self.d, self.e = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        y = F.relu(self.d(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], dim=1)))
        return self.head(torch.cat([y, F.relu(self.e(y))], dim=1).mean((2, 3)))


class Unaligned(nn.Module):
    """The first and the last run of 4 each hold two units of two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 2), nn.Linear(5, 8), nn.Linear(5, 2)
        self.d, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        together = torch.cat([F.relu(layer(x)) for layer in (self.a, self.b, self.c)], dim=1)
        return self.head(F.relu(self.d(together)))


class InGroups(nn.Module):
    """A convolution in two groups of 8 inputs, between two others."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.c, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class SmallGroups(nn.Module):
    """Blocks of 4 outputs lie across two convolution groups, whose inputs have orders of their own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 3, padding=1, groups=4)
        self.c, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


def ours(name, in_shape, **settings):
    return lambda: build_model(name, num_classes=10, in_shape=in_shape, **settings), in_shape


NETWORKS = {
    "mlp": ours("mlp", (40,), width=0.25),
    "resnet20": ours("resnet20", (3, 8, 8), width=0.5),
    "flatten of 2 x 2": ours("vgg11", (3, 64, 64), width=0.125),
    "vit": ours("vit", (3, 8, 8), options={"dim": 24, "heads": 3, "depth": 2}),  # heads of 8 units
    "heads of 6 units": ours("vit", (3, 8, 8), options={"dim": 12, "heads": 2, "depth": 1}),
    "heads of 2 units": ours("vit", (3, 8, 8), options={"dim": 8, "heads": 4, "depth": 1}),
    "grouped": (InGroups, (3, 4, 4)),
    "groups of 2 outputs": (SmallGroups, (3, 4, 4)),
    "grouped, shuffled": (Grouped, (3, 4, 4)),
    "concatenated": (Concatenated, (3, 4, 4)),
    "unaligned": (Unaligned, (5,)),
    "shared keys": (lambda: Transformer("separate", keys=1), (4, 5)),
}


def make(name):
    torch.manual_seed(0)
    build, in_shape = NETWORKS[name]
    network, x = build().double().eval(), torch.randn(16, *in_shape, dtype=torch.float64)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    spec, everything = derive_spec(network, x[:2]), full_mask(network)
    return network, x, spec, everything


@functools.cache
def made(name):
    """As `make`, once: not to be changed."""
    return make(name)


def structured(name, structure, seed=0):
    """A random mask with a structure for half of the weights, and the permutations that keep it."""
    _, _, spec, everything = made(name)
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(alive.shape) for name, alive in everything.items()}
    wanted = nearest_alive(structure, shapes, sum(alive.numel() for alive in everything.values()) // 2)
    scores = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    mask = prune_structured(scores, everything, structure, num_alive=wanted)
    assert keeps(mask, structure) is None
    return mask, restrict(spec, structure.blocks(shapes))


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_after_pi_every_group_keeps_its_weights(name, structure):
    network, x, spec, _ = made(name)
    moved = copy.deepcopy(network)
    has_moved = is_torn = False
    for seed in range(5):
        mask, within = structured(name, structure, seed)
        is_torn |= keeps(random_permutation(spec, seed).apply_mask(mask), structure) is not None
        pi = random_permutation(within, seed)
        after = pi.apply_mask(mask)
        assert keeps(after, structure) is None
        has_moved |= any(not torch.equal(after[name], mask[name]) for name in mask)
        moved.load_state_dict(pi.apply(network.state_dict()))
        with torch.no_grad():
            torch.testing.assert_close(moved(x), network(x), rtol=1e-9, atol=1e-12)
        as_whole = unrestricted(pi, spec)
        assert all(torch.equal(as_whole.apply_mask(mask)[name], after[name]) for name in mask)
    if isinstance(network, Grouped):
        return  # its inputs lie too far apart for runs
    assert has_moved
    assert is_torn, "the whole symmetry breaks the pattern"


@pytest.mark.parametrize("name", NETWORKS)
def test_constant_fan_in_needs_no_restriction(name):
    _, _, spec, _ = made(name)
    mask, within = structured(name, Structure("fan_in"))
    assert within.groups.keys() == spec.groups.keys()
    for seed in range(3):
        assert keeps(random_permutation(spec, seed).apply_mask(mask), Structure("fan_in")) is None


PAIRS = [(0, 1), (1, 0)]


def chain(*sizes, seed=0):
    torch.manual_seed(seed)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


def test_no_permutation_that_keeps_the_pattern_is_missing():
    """Of all 720 orders of 6 units those are in it that keep every 1:2 mask: 3! orders of runs, 2 of the units in each."""
    network = chain(2, 6, 3)
    spec, structure = derive_spec(network, torch.zeros(2, 2, dtype=torch.float64)), Structure("nm", n=1, m=2)
    within = restrict(spec, structure.blocks({name: alive.shape for name, alive in full_mask(network).items()}))
    assert {name: group.size for name, group in within.groups.items()} == {"0:blocks": 3, "0": 6}
    masks = [
        {"2.weight": torch.tensor([[*first, *second, *third]] * 3) > 0}
        for first in PAIRS
        for second in PAIRS
        for third in PAIRS
    ]
    allowed, found = set(), set()
    for order in itertools.permutations(range(6)):
        perm = torch.tensor(order)
        if all(keeps(Permutation(spec, {"0": perm}).apply_mask(mask), structure) is None for mask in masks):
            allowed.add(order)
        blocks = perm.view(3, 2)[:, 0] // 2
        try:
            Permutation(within, {"0:blocks": blocks, "0": perm})
        except ValueError:
            continue
        found.add(order)
    assert len(allowed) == 48
    assert found == allowed


def brute_force(gain):
    """The largest sum of a gain over all orders of 8 units that keep runs of 4 together."""
    best = -np.inf
    orders = list(itertools.permutations(range(4)))
    for blocks in itertools.permutations(range(2)):
        value = 0.0
        for place, block in enumerate(blocks):
            inside = gain[4 * place : 4 * place + 4, 4 * block : 4 * block + 4]
            value += max(sum(inside[row, column] for row, column in enumerate(order)) for order in orders)
        best = max(best, value)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_matching_within_the_runs_is_as_good_as_trying_all(seed):
    a, b = chain(3, 8, 2, seed=2 * seed), chain(3, 8, 2, seed=2 * seed + 1)
    x = torch.randn(200, 3, dtype=torch.float64)
    spec = derive_spec(a, x[:2])
    within = restrict(spec, {"2.weight": {1: 4}})
    hidden_a, hidden_b = (network[:2](x).detach().numpy() for network in (a, b))
    correlation = np.corrcoef(hidden_b.T, hidden_a.T)[:8, 8:]
    found = match_activations(a, b, within, [x])
    assert found.objective["0"] == pytest.approx(brute_force(correlation) / 8, abs=1e-5)
    free = match_activations(a, b, spec, [x])
    assert free.objective["0"] >= found.objective["0"] - 1e-9
    state_a, state_b = ({name: value.numpy() for name, value in network.state_dict().items()} for network in (a, b))
    gain = state_b["0.weight"] @ state_a["0.weight"].T + np.outer(state_b["0.bias"], state_a["0.bias"])
    gain += state_b["2.weight"].T @ state_a["2.weight"]
    pi = match_weights(a.state_dict(), b.state_dict(), within, 0).permutation.perms["0"].numpy()
    assert gain[np.arange(8), pi].sum() == pytest.approx(brute_force(gain), rel=1e-5)


def test_a_planted_permutation_is_found_within_the_runs():
    network, x, spec, everything = made("resnet20")
    within = restrict(spec, TWO_OF_FOUR.blocks({name: alive.shape for name, alive in everything.items()}))
    planted = random_permutation(within, 1)
    moved = copy.deepcopy(network)
    moved.load_state_dict(planted.apply(network.state_dict()))
    for found in (
        match_activations(network, moved, within, [x]),
        match_weights(network.state_dict(), moved.state_dict(), within, 0),
    ):
        assert set(found.permutation.distance(planted).values()) == {0.0}


def test_groups_that_no_blocks_keep_stay_and_the_others_do_not():
    _, _, spec, everything = made("concatenated")
    within = restrict(spec, TWO_OF_FOUR.blocks({name: alive.shape for name, alive in everything.items()}))
    assert set(spec.groups) - set(within.groups) == {"a", "b"}
    assert {"d", "d:blocks", "e", "e:blocks"} <= set(within.groups)
    _, _, spec, everything = made("unaligned")
    within = restrict(spec, TWO_OF_FOUR.blocks({name: alive.shape for name, alive in everything.items()}))
    assert set(within.groups) == {"a", "c", "d", "d:blocks"}, "a and c lie inside a run each"
    _, _, spec, everything = made("heads of 6 units")
    within = restrict(spec, TWO_OF_FOUR.blocks({name: alive.shape for name, alive in everything.items()}))
    values = next(name for name, group in spec.groups.items() if group.within)
    assert not set(within.groups) & {values, *spec.groups[values].within}, "a head of 6 units ends inside a run of 4"


def test_units_that_fill_whole_runs_by_themselves_are_free():
    """Behind a flatten of 2 x 2 each channel is a run of 4 inputs of the last layer."""
    _, _, spec, _ = made("flatten of 2 x 2")
    last = list(spec.groups)[-1]
    assert restrict(spec, {"head.weight": {1: 4}}).groups.keys() == spec.groups.keys()
    within = restrict(spec, {"head.weight": {1: 8}})
    assert within.groups[f"{last}:blocks"].size == spec.groups[last].size // 2


def test_where_units_are_watched_is_said_by_the_names_that_they_had():
    _, _, spec, everything = made("resnet20")
    within = restrict(spec, TWO_OF_FOUR.blocks({name: alive.shape for name, alive in everything.items()}))
    watched = within.watch(stream_site={"layer3.0.conv2": -2}).groups["layer3.0.conv2"]
    assert watched.site.node == spec.watch(stream_site={"layer3.0.conv2": -2}).groups["layer3.0.conv2"].site.node
    assert watched.site.part.groups == ("layer3.0.conv2:blocks", "layer3.0.conv2")


def test_nothing_is_restricted_where_no_weight_has_the_pattern():
    _, _, spec, _ = made("mlp")
    within = restrict(spec, {})
    assert within.groups == spec.groups
    assert within.axes == spec.axes
    still = unrestricted(identity_permutation(within), spec)
    assert set(still.fixed_share().values()) == {1.0}
