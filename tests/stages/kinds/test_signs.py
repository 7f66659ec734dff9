"""Arms whose alive weights have A's signs: what they start from, against what A, B and pi say by hand."""

import re
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from raylth.arms import ARMS, BUILT_IN, Arm
from raylth.core.masks import full_mask, with_signs
from raylth.core.models import init_model
from raylth.core.permutation import derive_spec, random_permutation
from raylth.core.pruning import prune_global_magnitude
from raylth.driver.run_record import Run
from raylth.export.model_card import card
from raylth.export.stored_network import find_network
from raylth.report import accuracy_table, load_results, write_report
from raylth.stages import load_data, make_context, make_plan, result_rows, run_plan
from raylth.stages.kinds.sparse import sparse
from raylth.stages.lineage import lineage
from raylth.store import Store, locate
from tests.conftest import tiny_sweep

SIGNED = ["signs", "permuted_signs", "signs_only"]
ARMS_HERE = ["naive", "permuted", "random", *SIGNED]
MLP = {"name": "mlp", "width": 0.25, "num_classes": 10, "in_shape": (40,)}
OWN = """
from raylth.arms import Arm


def upside_down(mask, given):
    return {name: alive.flip(0) for name, alive in mask.items()}


def thinned(mask, given):
    found = {name: alive.clone() for name, alive in mask.items()}
    next(iter(found.values()))[:] = False
    return found


flipped = Arm("B", upside_down, "B under A's mask upside down, with A's signs", signs="A")
early = Arm("A", "none", "A's early weights with its trained signs", signs="A")
moved = Arm("B", "random_permutation", "B under a random pi of A's mask and signs", needs_seed=True, signs="A")
not_moving = Arm("B", thinned, "B under a thinner mask", signs="A")
"""


def sweep(*arms: str, finder: str = "imp", **sparse):
    settings = {"arms": list(arms), "sparsities": [0.5, 0.8], "rewinds": [1], **sparse}
    return tiny_sweep(mask={"finder": finder}, sparse=settings, match={"epochs": [4]})


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Arms of one's own that take signs."""
    (tmp_path / "own_signs.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_signs", None)
    ARMS._found.clear()


class Study:
    """A finished sweep, and what its arms start from."""

    def __init__(self, config, folder):
        self.plan, self.store = make_plan(config), Store(folder / "store")
        self.graph = run_plan(self.plan, self.store)
        self.context = make_context(self.store, load_data(config.data))

    def arm(self, name, sparsity=0.8):
        cell = (name, sparsity)
        (stage,) = (s for s in self.plan.stages if (s.labels.get("arm"), s.labels.get("sparsity")) == cell)
        return stage

    def start(self, stage):
        """The weights and the mask with which a stage's training begins."""
        trainee = sparse(stage, self.context)
        return {name: t.clone() for name, t in trainee.network.state_dict().items()}, trainee.mask

    def tensors(self, key, file="weights"):
        return {name: torch.tensor(array) for name, array in self.store.tensors(key, file).items()}

    def perms(self, stage):
        perms = self.tensors(stage.parents["permutation"], "permutation")
        return [perms[group] for group in ("fc1", "fc2", "fc3")]


def moved(tensors, perms):
    """pi of an MLP's weights or masks, layer by layer: the explicit rule."""
    one, two, three = perms
    return {
        "fc1.weight": tensors["fc1.weight"][one],
        "fc2.weight": tensors["fc2.weight"][two][:, one],
        "fc3.weight": tensors["fc3.weight"][three][:, two],
        "head.weight": tensors["head.weight"][:, three],
    }


@pytest.fixture(scope="module", params=["imp", "oneshot", "snip"])
def study(request, tmp_path_factory):
    found = Study(sweep("lth", *ARMS_HERE, finder=request.param), tmp_path_factory.mktemp(request.param))
    assert not found.graph.errors
    found.finder = request.param
    return found


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_alive_weights_have_as_signs_and_bs_magnitudes_at_step_0(study, sparsity):
    for name in SIGNED:
        stage = study.arm(name, sparsity)
        early, (weights, mask) = study.tensors(stage.parents["weights"]), study.start(stage)
        source = study.tensors(stage.parents["signs"])
        if name != "signs":
            source = moved(source, study.perms(stage))
        flipped = 0
        for layer, tensor in weights.items():
            assert torch.equal(tensor.abs(), early[layer].abs()), "magnitudes are B's, to the bit"
            if layer not in mask:
                assert torch.equal(tensor, early[layer]), "biases and norms are B's"
                continue
            alive = mask[layer]
            assert (source[layer][alive] != 0).all(), "every alive weight has a sign in the network that the mask is of"
            assert torch.equal(tensor.sign()[alive], source[layer].sign()[alive])
            assert torch.equal(tensor[~alive], early[layer][~alive])
            flipped += int((tensor != early[layer]).sum())
        total = sum(int(alive.sum()) for alive in mask.values())
        assert 0.3 * total < flipped < 0.7 * total, "half of B's signs are not A's"


def test_masks_are_those_of_the_arms_without_signs(study):
    for signed, other in (("signs", "naive"), ("permuted_signs", "permuted"), ("signs_only", "random")):
        one, two = (study.tensors(study.arm(name).key, "mask") for name in (signed, other))
        assert all(torch.equal(alive, two[layer]) for layer, alive in one.items())
        start, plain = (study.start(study.arm(name))[0] for name in (signed, other))
        assert not torch.equal(start["fc2.weight"], plain["fc2.weight"])
        assert study.arm(signed).settings.seed == study.arm(other).settings.seed


def test_signs_come_from_the_network_that_the_mask_was_found_with(study):
    stages = {key: stage for stage in study.plan.stages for key in stage.produces}
    for name in SIGNED:
        stage = study.arm(name)
        source, mask = stages[stage.parents["signs"]], stages[stage.parents["mask"]]
        if study.finder == "imp":  # whose network is 0 wherever it is pruned
            assert (source.kind, source.labels["network"]) == (("dense", "A") if name == "signs_only" else ("imp", "A"))
            assert (stage.parents["signs"] == stage.parents["mask"]) == (name != "signs_only")
        else:
            assert mask.kind == "find"
            assert stage.parents["signs"] == mask.parents["network"]
            is_initial = stage.parents["signs"] == source.checkpoints.get("0")
            assert is_initial == (study.finder == "snip")


def test_lineage_counts_what_the_signs_cost_and_pairs_stay_pairs(study):
    of = {name: lineage(study.arm(name), study.graph) for name in ("lth", *ARMS_HERE)}
    assert len({found["pair_key"] for found in of.values()}) == 1
    without = {"signs": "naive", "permuted_signs": "permuted"}
    for signed, other in without.items():
        assert of[signed] == of[other], "the network was needed for the mask"
    assert of["signs_only"] == of["permuted"], "pi and A as for pi(mask)"
    assert of["signs"]["epochs_imp"] == (8 if study.finder == "imp" else 0)
    assert of["signs_only"]["epochs_match"] > of["signs"]["epochs_match"] == 0


def test_arms_with_signs_are_shown_like_any_other(study, tmp_path):
    if study.finder != "imp":
        pytest.skip("a report takes seconds, and shows arms alike however masks were found")
    run = Run.open(study.plan.config, study.store)
    run.write(result_rows(study.plan, study.graph, study.store, run.name), study.graph)
    table = accuracy_table(load_results(run.folder))
    assert set(table["label"]) == {"lth", *ARMS_HERE}
    page = write_report(run.folder, locate(tmp_path / "report")).read().decode()
    figure = next((tmp_path / "report").glob("figures/accuracy_vs_*.svg")).read_text()
    for name in SIGNED:
        assert name in page
        assert BUILT_IN[name].colour.lower() in figure.lower()
        text = card(find_network(study.store, study.arm(name).key), "safetensors")
        assert BUILT_IN[name].summary in text
        assert f"| signs | `{study.arm(name).parents['signs']}`" in text


def test_a_planted_permutation_gives_back_as_own_early_signs(study):
    """B's early weights are pi(A's), magnitudes and all: permuted signs are then those of pi(A), naive signs are not."""
    stage = study.arm("permuted_signs")
    network = init_model(3, **MLP)
    spec = derive_spec(network, torch.zeros(1, 40))
    pi = random_permutation(spec, 5)
    early = {name: tensor.clone() for name, tensor in network.state_dict().items()}  # A's, all alive weights with signs
    of_b = {name: tensor.abs() for name, tensor in pi.apply(early).items()}
    mask = prune_global_magnitude(early, full_mask(network), fraction=0.7)
    planted = {"weights": of_b, "mask": mask, "signs": early, "permutation": pi.perms}

    def load(key, file):
        role = {"weights": "signs" if key == "signs" else "weights"}.get(file, file)
        return {name: tensor.numpy() for name, tensor in planted[role].items()}

    context = replace(study.context, load=load)
    parents = {role: role for role in planted}
    trainee = sparse(replace(stage, parents=parents), context)
    for name, alive in trainee.mask.items():
        assert torch.equal(trainee.network.state_dict()[name][alive], pi.apply(early)[name][alive])
    del parents["permutation"]
    naive = sparse(replace(study.arm("signs"), parents=parents), context)
    agreement = [
        (naive.network.state_dict()[name].sign() == pi.apply(early)[name].sign())[alive] for name, alive in naive.mask.items()
    ]
    assert 0.3 < torch.cat(agreement).double().mean() < 0.7, "by chance"


def test_arms_of_ones_own_take_signs_that_move_with_their_mask(own, tmp_path):
    names = [f"own_signs:{name}" for name in ("flipped", "early", "moved", "not_moving")]
    study = Study(sweep("naive", "permuted", *names, sparsities=[0.8]), tmp_path)
    (error,) = study.graph.errors.values()
    assert re.match(r"ValueError: arm own_signs:not_moving: signs='A' needs a transform that moves each entry", error)
    for name in names[:3]:
        stage = study.arm(name)
        weights, mask = study.start(stage)
        source, early = study.tensors(stage.parents["signs"]), study.tensors(stage.parents["weights"])
        for layer, alive in mask.items():
            signs = source[layer].flip(0) if name == names[0] else source[layer]
            if name == names[2]:
                signs = weights[layer].sign() * alive  # a permutation: as many of each sign in the layer
                assert [int((signs == s).sum()) for s in (-1, 1)] == [int((source[layer].sign() == s).sum()) for s in (-1, 1)]
            assert torch.equal(weights[layer].sign()[alive], signs.sign()[alive]), name
            assert torch.equal(weights[layer].abs(), early[layer].abs())
    assert study.arm(names[1]).labels["network"] == "A"


def test_a_sign_of_0_and_what_the_mask_does_not_name_stay():
    weights = {"w": torch.tensor([1.5, -2.0, -0.25, 0.0, 3.0]), "b": torch.tensor([-1.0])}
    mask, signs = {"w": torch.tensor([True, True, True, True, False])}, {"w": torch.tensor([-7, 9, 0, -1, -1]), "b": None}
    found = with_signs(weights, mask, signs)
    assert found["w"].tolist() == [-1.5, 2.0, -0.25, 0.0, 3.0]
    assert torch.equal(found["b"], weights["b"])
    assert weights["w"].tolist() == [1.5, -2.0, -0.25, 0.0, 3.0]


def test_a_file_of_masks_has_no_signs_and_one_with_a_network_has(tmp_path):
    network = init_model(77, **MLP)
    mask = prune_global_magnitude(network.state_dict(), full_mask(network), fraction=0.5)
    save_file({name: alive.to(torch.uint8) for name, alive in mask.items()}, tmp_path / "m.safetensors")
    pruned = {
        key: value
        for name, tensor in network.state_dict().items()
        for key, value in (
            {f"{name}_orig": tensor, f"{name}_mask": mask[name].float()} if name in mask else {name: tensor}
        ).items()
    }
    save_file(pruned, tmp_path / "n.safetensors")
    asked = {"sparsities": [0.5]}
    with pytest.raises(
        ValueError,
        match=r"sparse\.arms: signs and permuted_signs take the signs of A's trained network, and .*m\.safetensors",
    ) as error:
        make_plan(sweep("naive", "signs", "permuted_signs", mask_from=str(tmp_path / "m.safetensors"), **asked))
    assert "\n" not in str(error.value)
    assert make_plan(sweep("naive", "permuted", mask_from=str(tmp_path / "m.safetensors"), **asked)).stages
    study = Study(sweep("naive", *SIGNED, mask_from=str(tmp_path / "n.safetensors"), **asked), tmp_path)
    assert not study.graph.errors
    weights, alive = study.start(study.arm("signs", 0.5))
    for name, kept in alive.items():
        assert torch.equal(weights[name].sign()[kept], network.state_dict()[name].sign()[kept])
        assert torch.equal(kept, mask[name])
    assert all(study.arm(name, 0.5).parents["signs"] == study.arm(name, 0.5).parents["mask"] for name in SIGNED)


def test_other_arms_keep_their_keys_and_bad_signs_are_refused():
    def keys(*arms):
        return {s.labels["arm"]: s.key for s in make_plan(sweep(*arms, sparsities=[0.5])).stages if s.kind == "sparse"}

    plain, both = keys("naive", "permuted"), keys("naive", "permuted", "signs", "permuted_signs")
    assert plain.items() <= both.items()
    assert len(set(both.values())) == 4
    stage = next(s for s in make_plan(sweep("naive")).stages if s.kind == "sparse")
    assert "signs" not in stage.settings.plain()
    with pytest.raises(ValueError, match="signs: should be 'own' or 'A', found 'B'"):
        Arm("B", "none", "x", signs="B")
