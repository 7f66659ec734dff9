"""The symmetry of each architecture is derived once for a store, however many stages and processes need it."""

import subprocess
import sys

import pytest

from raylth.core.models import init_model
from raylth.stages import make_context, make_plan, run_plan, symmetry
from raylth.stages.context import load_data
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


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A store with the symmetry of a network; returns how to ask for it as a new process does."""
    monkeypatch.setattr(symmetry, "_known", {})
    plan, store = make_plan(tiny_sweep()), Store(tmp_path)
    model = plan.stages[0].settings.model
    context = make_context(store, load_data(plan.config.data))
    network = init_model(0, **model.arguments())
    first = symmetry.symmetry_of(model, network, context)
    (file,) = (tmp_path / "symmetry").iterdir()

    def ask():
        symmetry._known.clear()
        return symmetry.symmetry_of(model, network, context)

    return first, file, ask


def never(*arguments):
    raise AssertionError("derived again")


def test_another_process_reads_what_the_store_keeps(kept, monkeypatch):
    first, _, ask = kept
    monkeypatch.setattr(symmetry, "derive_spec", never)
    assert ask() == first
    assert first.program is not None


@pytest.mark.parametrize("harm", [lambda data: b"", lambda data: data[:-9], lambda data: data.replace(b"relu", b"tanh")])
def test_a_harmed_file_is_derived_again_and_replaced(kept, harm):
    first, file, ask = kept
    whole = file.read_bytes()
    file.write_bytes(harm(whole))
    assert ask() == first
    assert file.read_bytes() == whole


def test_a_process_that_finds_it_in_the_store_does_not_import_the_exporter(tmp_path):
    """It takes seconds of a processor in each."""
    words = """
import sys
from raylth.stages import make_plan, run_plan
from raylth.store import Store
from tests.conftest import tiny_sweep
plan = make_plan(tiny_sweep(match={"epochs": [4]}))
assert not run_plan(plan, Store(sys.argv[1])).errors
print("torch._dynamo" in sys.modules)
"""
    store = Store(tmp_path / "store")
    found = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", words, str(tmp_path / "store")], capture_output=True, text=True, check=True
        )
        found.append(run.stdout.split()[-1])
        (store.root / "artefacts").remove()
    assert found == ["True", "False"]
