"""Studies of masks with a pattern: every arm keeps it, and what cannot have it is refused before anything is trained."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from raylth.arms import Arm
from raylth.core.masks import full_mask
from raylth.core.models import init_model
from raylth.core.permutation import Permutation, derive_spec, restrict
from raylth.core.pruning import MaskFinder, Structure, keeps, prune_global_magnitude, prune_structured, removable_units
from raylth.stages import make_plan, run_plan
from raylth.stages.arrays import to_torch
from raylth.store import Store
from tests.conftest import tiny_sweep

ARMS = ["lth", "naive", "permuted", "random", "random_permutation"]
PATTERNS = {
    "2:4": ("oneshot", {"pattern": "nm", "n": 2, "m": 4}, [0.5]),
    "blocks": ("oneshot", {"pattern": "block", "rows": 2, "columns": 4}, [0.5, 0.8]),
    "fan-in": ("oneshot", {"pattern": "fan_in"}, [0.5, 0.9]),
    "units": ("oneshot", {"pattern": "units"}, [0.5]),
    "fan-in in rounds": ("imp", {"pattern": "fan_in"}, [0.3, 0.5]),
    "units in rounds": ("imp", {"pattern": "units"}, [0.291, 0.5]),
    "blocks in rounds": ("imp", {"pattern": "block", "rows": 4, "columns": 2}, [0.5]),
}


def sweep(finder, structure, sparsities, **changes):
    settings = {
        "mask": {"finder": finder, "structure": structure},
        "match": {"epochs": [4], "method": ["activation", "weight"]},
        "sparse": {"arms": ARMS, "sparsities": sparsities, "rewinds": [0]},
    }
    return tiny_sweep(**{name: {**settings.get(name, {}), **value} for name, value in (settings | changes).items()})


def network_units():
    network, x = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,)), torch.zeros(2, 40)
    spec = derive_spec(network, x)
    return spec, removable_units(network, spec, x, full_mask(network))


@pytest.mark.parametrize("case", PATTERNS)
def test_every_arm_trains_under_the_pattern(case, tmp_path):
    finder, settings, sparsities = PATTERNS[case]
    structure, (spec, units) = Structure(**settings), network_units()
    plan, store = make_plan(sweep(finder, settings, sparsities)), Store(tmp_path)
    graph = run_plan(plan, store)
    assert not graph.errors
    seen, masks = set(), {}
    for stage in plan.stages:
        if stage.kind in ("find", "imp", "sparse"):
            mask = to_torch(store.tensors(stage.key, "mask"), "cpu")
            assert keeps(mask, structure, units) is None, stage.name
            sparsity, found = stage.labels["sparsity"], store.metrics(stage.key)["mask_sparsity"]
            assert found == pytest.approx(sparsity, abs=0.005)
            if stage.kind == "sparse":
                seen.add((stage.labels["arm"], sparsity))
                masks[stage.labels["arm"], stage.labels["match_method"], sparsity] = mask
        if stage.kind == "match":
            perms = to_torch(store.tensors(stage.key, "permutation"), "cpu")
            assert set(perms) == set(spec.groups), "as one of the whole symmetry"
            within = restrict(spec, structure.blocks({name: alive.shape for name, alive in full_mask(init()).items()}))
            assert_inside(within, perms)
    assert seen == {(arm, sparsity) for arm in ARMS for sparsity in sparsities}
    for sparsity in sparsities:
        lth = masks["lth", None, sparsity]
        assert same(masks["naive", None, sparsity], lth)
        for name in (("permuted", "weight"), ("random", None), ("random_permutation", None)):
            assert not same(masks[(*name, sparsity)], lth), name
            assert {each: int(kept.sum()) for each, kept in masks[(*name, sparsity)].items()} == {
                each: int(kept.sum()) for each, kept in lth.items()
            }


def init():
    return init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,))


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def assert_inside(within, perms):
    """Raise ValueError unless permutations of units keep the blocks together."""
    blocks = {}
    for name, group in within.groups.items():
        if name not in perms:
            units = perms[name.split(":")[0]]
            size = len(units) // group.size
            blocks[name] = units.view(-1, size)[:, 0] // size
    Permutation(within, {**{name: perms[name] for name in within.groups if name in perms}, **blocks})


def test_matching_is_shared_with_sweeps_whose_pattern_any_permutation_keeps():
    def keys(structure, sparsity, kind):
        return {stage.key for stage in make_plan(sweep("oneshot", structure, [sparsity])).stages if stage.kind == kind}

    plain, fan_in, two = {"pattern": "unstructured"}, {"pattern": "fan_in"}, {"pattern": "nm", "n": 2, "m": 4}
    assert keys(plain, 0.5, "match") == keys(fan_in, 0.5, "match")
    assert keys(plain, 0.5, "match").isdisjoint(keys(two, 0.5, "match"))
    assert keys(plain, 0.5, "dense") == keys(two, 0.5, "dense")
    assert keys(plain, 0.5, "find").isdisjoint(keys(two, 0.5, "find"))
    without = make_plan(tiny_sweep(mask={"finder": "oneshot"}, match={"epochs": [4]}))
    spelt_out = make_plan(tiny_sweep(mask={"finder": "oneshot", "structure": plain}, match={"epochs": [4]}))
    assert [stage.key for stage in without.stages] == [stage.key for stage in spelt_out.stages]


def unstructured(network, inputs):
    total = sum(alive.numel() for alive in inputs.mask.values())
    return prune_global_magnitude(network.state_dict(), inputs.mask, count=total - inputs.num_alive)


def largest(network, inputs):
    assert inputs.structure == Structure("nm", n=2, m=4)
    return prune_structured(network.state_dict(), inputs.mask, inputs.structure, num_alive=inputs.num_alive)


without_patterns = MaskFinder(unstructured, "any")
wrong = MaskFinder(unstructured, "says that it has patterns", has_structure=True)
right = MaskFinder(largest, "as it is asked", has_structure=True)


def transform(mask, given):
    assert given.structure.pattern == "nm"
    return {name: alive.roll(1, dims=1) for name, alive in mask.items()}


tearing = Arm("A", transform, "moves every weight by one")
TWO = {"pattern": "nm", "n": 2, "m": 4}


def test_a_finder_of_ones_own_is_checked_against_the_pattern(tmp_path):
    name = "tests.stages.kinds.test_structured:"
    graph = run_plan(make_plan(sweep(f"{name}wrong", TWO, [0.5])), Store(tmp_path))
    (message,) = {str(error) for error in graph.errors.values() if "mask finder" in str(error)}
    assert "4 consecutive inputs number" in message
    assert "2:4 requires 2" in message
    config = sweep(f"{name}right", TWO, [0.5], sparse={"arms": ["lth", f"{name}tearing"]})
    graph = run_plan(make_plan(config), Store(tmp_path / "arms"))
    (message,) = map(str, graph.errors.values())
    assert "breaks the mask's structure: fc1.weight: 4 consecutive inputs" in message


BAD = [
    ({"finder": "snip", "structure": TWO}, [0.5], "mask.structure: mask.finder snip makes unstructured masks only"),
    (
        {"finder": "tests.stages.kinds.test_structured:without_patterns", "structure": TWO},
        [0.5],
        "makes unstructured masks only (with patterns: imp, oneshot",
    ),
    (
        {"finder": "imp", "structure": TWO},
        [0.5],
        "mask.structure: 2:4 has one sparsity, and imp prunes in rounds: use oneshot",
    ),
    ({"finder": "oneshot", "structure": {"pattern": "nm", "n": 2}}, [0.5], "m: the pattern nm needs it"),
    ({"finder": "oneshot", "structure": {**TWO, "n": 5}}, [0.5], "n must be below m"),
    ({"finder": "oneshot", "structure": {"pattern": "fan_in", "rows": 2}}, [0.5], "rows: the pattern fan_in has none"),
    ({"finder": "oneshot", "structure": TWO}, [0.9], "sparse.sparsities: 0.9 is no sparsity that 2:4 can have here"),
    (
        {"finder": "oneshot", "structure": {"pattern": "units"}},
        [0.3],
        "sparse.sparsities: 0.3 is no sparsity that whole units can have here: the nearest are 0.2911 and 0.3051",
    ),
]


@pytest.mark.parametrize(("mask", "sparsities", "message"), BAD, ids=[message for *_, message in BAD])
def test_what_cannot_be_is_refused_before_anything_is_trained(mask, sparsities, message):
    with pytest.raises((ValueError, ValidationError)) as caught:
        make_plan(tiny_sweep(mask=mask, sparse={"sparsities": sparsities}, match={"epochs": [4]}))
    assert message in str(caught.value)


def test_units_of_a_network_that_has_none_are_refused():
    model = {"name": "vit", "widths": [1], "options": {"dim": 8, "heads": 2, "depth": 1, "patch": 4}}
    plan = {"data": {"name": "digits", "num_train": 100, "num_test": 50}, "model": model}
    config = sweep("oneshot", {"pattern": "units"}, [0.9], **plan, match={"epochs": [4]})
    with pytest.raises(ValueError, match=r"sparse.sparsities: 0.9 is no sparsity that whole units can have here"):
        make_plan(config)


def test_a_mask_from_a_file_is_checked_against_the_pattern(tmp_path):
    network = init()
    state = {name: torch.arange(t.numel()).sin().reshape(t.shape) for name, t in network.state_dict().items()}
    masks = {
        "any": prune_global_magnitude(state, full_mask(network), fraction=0.5),
        "two": prune_structured(state, full_mask(network), Structure(**TWO), num_alive=1824),
    }
    for name, mask in masks.items():
        save_file({each: alive.to(torch.uint8) for each, alive in mask.items()}, tmp_path / f"{name}.safetensors")

    def planned(name):
        sparse = {"arms": ["naive", "permuted"], "sparsities": [0.5], "mask_from": str(tmp_path / f"{name}.safetensors")}
        return make_plan(tiny_sweep(mask={"structure": TWO}, sparse=sparse, match={"epochs": [4]}))

    with pytest.raises(ValueError, match=r"sparse.mask_from: .*any.safetensors: fc1.weight: 4 consecutive inputs"):
        planned("any")
    assert not run_plan(planned("two"), Store(tmp_path / "store")).errors
