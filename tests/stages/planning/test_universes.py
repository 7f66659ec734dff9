"""Matches of all networks at once: what is planned, and that the permutations of all pairs compose."""

from itertools import product

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from raylth.core.masks import full_mask
from raylth.core.matching import match_cycle_consistent
from raylth.core.models import init_model
from raylth.core.permutation import Permutation
from raylth.core.pruning import prune_global_magnitude
from raylth.core.pruning.torch_prune import to_torch_prune
from raylth.stages import load_data, make_context, make_plan, result_rows, run_plan
from raylth.stages.symmetry import symmetry_of
from raylth.stages.training import load_network
from raylth.store import Store
from tests.conftest import tiny_sweep

SPARSE = {"arms": ["lth", "permuted"], "sparsities": [0.3, 0.5], "rewinds": [1]}
SWEEP = {
    "seeds": {"replicates": 2},
    "match": {"method": ["weight", "c2m3"], "epochs": [2, 4]},
    "sparse": {**SPARSE, "sparsities": [0.5]},
    "model": {"name": "mlp", "widths": [0.125, 0.25]},
    "analyses": {"ensemble": {"members": 2, "repeats": 2, "sets": ["permuted"]}},
}


def of_kind(plan, kind, **labels):
    return [s for s in plan.stages if s.kind == kind and all(s.labels.get(name) == value for name, value in labels.items())]


def test_a_universe_holds_every_dense_network_of_a_width_at_the_epoch_of_the_match():
    plan = make_plan(tiny_sweep(**SWEEP))
    dense = of_kind(plan, "dense")
    for width, epoch in product((0.125, 0.25), (2, 4)):
        (universe,) = of_kind(plan, "universe", width=width, match_epoch=epoch)
        members = []
        for replicate in range(2):
            a, b = (
                next(
                    s
                    for s in dense
                    if (s.labels["width"], s.labels["replicate"], s.labels["network"]) == (width, replicate, n)
                )
                for n in "AB"
            )
            members += [a.key, b.checkpoints["2"] if epoch == 2 else b.key]
        assert universe.parents == {str(number): key for number, key in enumerate(members)}
        matches = of_kind(plan, "match", width=width, match_epoch=epoch, match_method="c2m3")
        assert {match.parents["universe"] for match in matches} == {universe.key}
        for match in matches:
            assert [members[match.settings.places[role]] for role in "ab"] == [match.parents[role] for role in "ab"]
    assert len(of_kind(plan, "universe")) == 4
    places = {key: number for number, stage in enumerate(plan.stages) for key in stage.produces}
    assert all(places[parent] < places[stage.key] for stage in plan.stages for parent in stage.parents.values())
    alone = make_plan(tiny_sweep(**{**SWEEP, "match": {"method": ["weight"], "epochs": [2, 4]}}))
    assert {s.key for s in of_kind(plan, "match", match_method="weight")} == {s.key for s in of_kind(alone, "match")}


def test_the_permutations_of_a_sweep_compose_exactly_and_are_the_core_functions(tmp_path):
    config = tiny_sweep(
        **{**SWEEP, "model": {"name": "mlp", "widths": [0.25]}, "match": {"method": "c2m3", "epochs": [4]}},
        connect={"points": 3, "samples": 60, "corrections": ["plain"]},
    )
    plan, store = make_plan(config), Store(tmp_path / "store")
    graph = run_plan(plan, store)
    assert not graph.errors
    context = make_context(store, load_data(plan.config.data))
    (universe,) = of_kind(plan, "universe")
    networks = [load_network(universe.settings.model, context, universe.parents[str(number)]) for number in range(4)]
    spec = symmetry_of(universe.settings.model, networks[0], context)
    expected = match_cycle_consistent([each.state_dict() for each in networks], spec, universe.settings.seed)
    assert store.metrics(universe.key)["cosine"] == pytest.approx(expected.cosine)
    found = {}
    for match in of_kind(plan, "match"):
        perms = {group: torch.tensor(perm) for group, perm in store.tensors(match.key, "permutation").items()}
        places = match.settings.places["a"], match.settings.places["b"]
        found[places] = Permutation(spec, perms)
        assert max(found[places].distance(expected.between(*places)).values()) == 0
    assert set(found) == set(product((0, 2), (1, 3))), "the ensembles match every A to every B"
    around = [found[2, b].inverse().compose(found[0, b]) for b in (1, 3)]
    assert max(around[0].distance(around[1]).values()) == 0, "from A to the other A, by either B"
    rows = result_rows(plan, graph, store, "run")
    assert {row["match_method"] for row in rows["permutations"]} == {"c2m3"}
    assert all(-1 <= row["correlation"] <= 1 for row in rows["permutations"])
    permuted = [row for row in rows["results"] if row["arm"] == "permuted"]
    assert {(row["epochs_a"], row["epochs_b"]) for row in permuted} == {(8, 8)}, "all As and Bs are needed"


def test_networks_from_masks_files_are_in_the_universe_of_their_sparsity(tmp_path):
    """One file a sparsity for all replicates: A counts once."""
    for sparsity in SPARSE["sparsities"]:
        network = init_model(7, "mlp", width=0.25, num_classes=10, in_shape=(40,))
        mask = prune_global_magnitude(dict(network.state_dict()), full_mask(network), fraction=sparsity)
        save_file(to_torch_prune(network.state_dict(), mask), tmp_path / f"{sparsity}.safetensors")
    sparse = {**SPARSE, "arms": ["permuted"], "mask_from": str(tmp_path / "{sparsity}.safetensors")}
    merge = {"merge": {"networks": ["permuted"]}}
    asked = {"match": {"method": "c2m3", "epochs": [4]}, "seeds": {"replicates": 2}, "analyses": {"custom": merge}}
    plan = make_plan(tiny_sweep(sparse=sparse, **asked))
    universes = of_kind(plan, "universe")
    masks = {stage.key: stage for stage in of_kind(plan, "mask")}
    assert len(masks) == len(universes) == 2, "what is merged is moved by the universe of its cell"
    (analysis,) = of_kind(plan, "analysis")
    assert analysis.parents["universe"] in {universe.key for universe in universes}
    for universe in universes:
        assert len(universe.parents) == 3
        assert sum(key in masks for key in universe.parents.values()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": {"replicates": 1}}, r"seeds.replicates: 1, and match.method: c2m3 matches three networks or more at once"),
        (
            {"search": {"space": {"sparse.lr": {"type": "float", "low": 0.01, "high": 0.02}}, "holdout": 50}},
            "search.replicates: 1, and match.method: c2m3 matches three networks or more at once, A and B of all replicates: "
            "should be 2 or more",
        ),
    ],
)
def test_too_few_networks_are_refused_before_anything_runs(changes, message):
    with pytest.raises(ValidationError, match=message):
        tiny_sweep(**{**SWEEP, **changes, "analyses": {}})
    without = {**SWEEP, **changes, "analyses": {}, "sparse": {**SPARSE, "arms": ["lth", "naive"]}}
    assert tiny_sweep(**without), "where nothing is matched the method does not matter"


def test_a_matcher_of_many_that_returns_too_few_or_the_wrong_thing_fails_with_one_line(tmp_path, monkeypatch):
    from raylth.core.matching import MATCHERS, Matcher

    def few(networks, spec, inputs):
        return []

    def wrong(networks, spec, inputs):
        return list(networks)

    for name, match_many, message in (
        ("few", few, "ValueError: matcher few: expected a permutation for each of 4 networks, found 0"),
        ("wrong", wrong, "TypeError: matcher wrong: network 0: expected a raylth.core.permutation.Permutation, found MLP"),
    ):
        monkeypatch.setitem(MATCHERS._entries, name, Matcher(few, "", match_many=match_many))
        config = tiny_sweep(
            **{**SWEEP, "model": {"name": "mlp", "widths": [0.125]}, "match": {"method": name, "epochs": [4]}}
        )
        graph = run_plan(make_plan(config), Store(tmp_path / name))
        assert set(graph.errors.values()) == {message}
