"""A process derives the symmetry of each architecture once, however many stages need it."""

from raylth.stages import make_plan, run_plan, symmetry
from raylth.store import Store
from tests.conftest import tiny_sweep


def test_each_architecture_is_derived_once(tmp_path, monkeypatch):
    derived = []
    derive = symmetry.derive_spec

    def counted(network, example):
        derived.append(sum(tensor.numel() for tensor in network.parameters()))
        return derive(network, example)

    monkeypatch.setattr(symmetry, "derive_spec", counted)
    monkeypatch.setattr(symmetry, "_known", {})
    sparse = {"arms": ["permuted", "random_permutation"], "sparsities": [0.5], "rewinds": [0, 1]}
    plan = make_plan(tiny_sweep(model={"widths": [0.25, 0.5]}, sparse=sparse, match={"epochs": [4]}, connect={"points": 3}))
    assert not run_plan(plan, Store(tmp_path)).errors
    assert len(derived) == len(set(derived)) == 2
