"""The networks of a plan are tried before anything is trained, once for a store."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from torch import nn

from raylth.cli.sweep import main
from raylth.config.sweep import SweepConfig
from raylth.core.data import DATASETS
from raylth.core.models import MODELS
from raylth.core.training.recipe import Recipe
from raylth.driver.run_record import Run
from raylth.report import load_results
from raylth.stages import Graph, check_networks, keep_checked, make_plan, result_rows, run_plan, symmetry
from raylth.stages.planning import network_checks, shapes
from raylth.store import Store
from tests.conftest import tiny_sweep

hours = importlib.import_module("raylth.stages.planning.time_estimate")  # the package has a function of that name

NETS = """
import math
import torch
from torch import nn
from tests.core import own_networks as own


class Adapted(nn.Module):
    def __init__(self, inner, features, classes):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(features, own.IN), inner, nn.Linear(own.CLASSES, classes)

    def forward(self, x):
        return self.last(torch.relu(self.inner(torch.relu(self.first(x.flatten(1))))))


def __getattr__(name):
    def build(*, width, num_classes, in_shape):
        return Adapted(getattr(own, name)(), math.prod(in_shape), num_classes)
    build.__module__ = __name__
    return build


def normed(*, width, num_classes, in_shape):
    return Adapted(own.Normalised(own.OwnNorm), math.prod(in_shape), num_classes)


def acted(*, width, num_classes, in_shape):
    return Adapted(own.Normalised(own.NormAndActivation), math.prod(in_shape), num_classes)


def nothing(*, width, num_classes, in_shape):
    pass


def narrow_only(*, width, num_classes, in_shape):
    bad = nn.Linear(3, 4) if width > 1 else nn.Identity()
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(in_shape), 8), nn.ReLU(), bad, nn.Linear(8, num_classes))
"""
SETTINGS = {
    "name": "own", "storage": "store", "seeds": {"replicates": 1},
    "data": {"name": "mnist1d", "num_train": 257, "num_test": 50},
    "dense": {"epochs": 2, "batch_size": 64}, "imp": {"epochs_per_round": 1, "batch_size": 64},
    "sparse": {"arms": ["lth", "naive"], "sparsities": [0.3], "rewinds": [1], "batch_size": 64},
}  # fmt: skip
PERMUTED = "sparse.arms=[lth, permuted]"


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "ournets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(network_checks, "_passed", {})
    yield tmp_path
    sys.modules.pop("ournets", None)
    MODELS._found.clear()


def sweep(folder, capsys, model, *words):
    (folder / "own.yaml").write_text(yaml.safe_dump({**SETTINGS, "model": {"name": model}}))
    before = set(folder.iterdir())
    status = main(["own.yaml", *words])
    assert set(folder.iterdir()) - before <= {folder / "__pycache__"}, "nothing is made on disk"
    return status, capsys.readouterr().err


@pytest.mark.parametrize("words", [["--dry-run"], []], ids=["dry run", "run"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ournets:SharedMemory", "model.name: ournets:SharedMemory: 'inner.fc2.weight' and 'inner.fc3.weight' are one"),
        ("ournets:UnknownActivation", "special_bessel_j0, whose symmetry is not known"),
        ("ournets:Branch", "control flow that depends on the data"),
        ("ournets:Dict", "model.name: ournets:Dict: its forward pass in training mode fails"),
        ("ournets:Mismatch", "cannot be multiplied"),
        ("ournets:WeightNorm", "inner.fc2.weight is parametrized"),
        ("ournets:nothing", "ournets:nothing must return a torch.nn.Module, and returned None"),
    ],
)
def test_a_network_that_cannot_be_used_so_is_one_line_and_status_2(own, capsys, model, message, words):
    status, told = sweep(own, capsys, model, PERMUTED, *words)
    assert status == 2
    assert message in told
    assert told.count("\n") == 1
    assert told.startswith("own.yaml:"), "where it is asked for"


@pytest.mark.parametrize(
    "words",
    [
        [PERMUTED],
        ["sparse.arms=[lth, random_permutation]"],
        ["analyses.overlap={}", "sparse.arms=[lth, naive]"],
        ["sparse.arms=[lth, naive]", "analyses.match_quality={epochs: [1]}"],
        ["sparse.arms=[lth, naive]", "analyses.lines=[{between: [lth, pi^-1(naive)]}]"],
    ],
)
def test_whatever_needs_a_permutation_asks_for_the_symmetry(own, capsys, words):
    status, told = sweep(own, capsys, "ournets:UnknownActivation", "--dry-run", *words)
    assert (status, "whose symmetry is not known" in told) == (2, True)


def test_what_needs_none_does_not(own, capsys):
    for model in ("ournets:UnknownActivation", "ournets:Branch"):
        assert sweep(own, capsys, model, "--dry-run")[0] == 0


@pytest.mark.parametrize("model", ["ournets:Branch", "ournets:Options", "ournets:normed", "ournets:acted"])
def test_a_network_that_passed_is_trained(own, model):
    settings = {**SETTINGS, "model": {"name": model}}
    if model != "ournets:Branch":
        settings["sparse"] = {**SETTINGS["sparse"], "arms": ["lth", "permuted"]}
        settings["connect"] = {"points": 3, "samples": 100, "corrections": ["plain", "reset", "repair"]}
    config = SweepConfig.model_validate(settings)
    plan, store = make_plan(config), Store(own / "store")
    graph = run_plan(plan, store)
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    assert set(graph.states.values()) == {"done"}
    assert (load_results(run.folder)["status"] == "done").all()


def test_every_width_is_tried(own, capsys):
    assert sweep(own, capsys, "ournets:narrow_only", "--dry-run")[0] == 0
    status, told = sweep(own, capsys, "ournets:narrow_only", "--dry-run", "model.widths=[1, 2]")
    assert status == 2
    assert "ournets:narrow_only, width 2: its forward pass" in told


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["dense.drop_last=false"], "dense.batch_size: 64 of 257 samples with drop_last: false leaves a batch of one sample"),
        (["imp.drop_last=false"], "imp.batch_size: 64 of 257 samples"),
        (["sparse.drop_last=false", "sparse.batch_size=256"], "sparse.batch_size: 256 of 257 samples"),
        (["dense.batch_size=1"], "dense.batch_size: 1 of 257 samples leaves"),
        (["data.num_train=1"], "dense.batch_size: 64 of 1 samples"),
        (["data.holdout=128", "dense.drop_last=false"], "dense.batch_size: 64 of 129 samples"),
        ([PERMUTED, "match.method=learned", "match.samples=1"], "match.samples: learned matching on 1 sample"),
        (
            ["dense.batch_size=3", "dense.unsynced_workers=2", "resources.dense={gpus: 0, cpus: 2, num_workers: 2}"],
            "dense.batch_size: 3 of 257 samples, shared by 2 workers, leaves",
        ),
    ],
)
def test_a_batch_of_one_sample_is_refused_with_the_numbers(own, capsys, words, numbers):
    if any("num_workers" in word for word in words):
        words = [*words[:-1], "resources.dense={gpus: 2, cpus: 2}"]
    status, told = sweep(own, capsys, "ournets:normed", "--dry-run", *words)
    assert status == 2, told
    assert numbers in told
    assert "cannot be trained" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["dense.drop_last=false", "dense.batch_size=65"]])
def test_other_batches_are_not(own, capsys, words):
    assert sweep(own, capsys, "ournets:normed", "--dry-run", *words)[0] == 0
    assert sweep(own, capsys, "mlp", "--dry-run", "dense.drop_last=false")[0] == 0, "which has no batch norm"


def test_batches_of_one_sample_are_those_that_are_counted():
    """Against a loop over all batches and all workers' parts."""
    for samples in range(1, 14):
        for size in range(1, 9):
            for drop_last in (True, False):
                for workers in (1, 2, 3):
                    recipe = Recipe(
                        1, 0.1, batch_size=size, drop_last=drop_last, unsynced_workers=workers if workers > 1 else 0
                    )
                    batches = [min(size, samples - start) for start in range(0, samples, size)]
                    if drop_last and len(batches) > 1 and batches[-1] < size:
                        batches.pop()
                    parts = [batch // workers + (n < batch % workers) for batch in batches for n in range(workers)]
                    assert (network_checks._one_sample(recipe, samples) is not None) == (1 in parts), recipe


def test_a_network_is_tried_once_for_a_store(own, monkeypatch):
    config = SweepConfig.model_validate({**SETTINGS, "model": {"name": "ournets:Plain"}})
    tried = []
    monkeypatch.setattr(network_checks, "check_network", lambda build, uses: tried.append(uses))
    plan, store = make_plan(config), Store(own / "store")
    keys = check_networks(plan, store)
    check_networks(plan, store)
    assert len(tried) == 1, "in one process"
    assert not (own / "store").exists()
    keep_checked(store, keys)
    network_checks._passed.clear()
    check_networks(plan, store)
    assert len(tried) == 1, "from the store"
    (own / "ournets.py").write_text(NETS.replace("torch.relu(self.first", "torch.tanh(self.first"))
    check_networks(make_plan(config), store)
    assert len(tried) == 2, "another code"


def test_the_symmetry_that_a_check_derives_is_the_one_that_stages_use(own, monkeypatch):
    config = SweepConfig.model_validate({**SETTINGS, "model": {"name": "ournets:Plain"}})
    config = config.model_copy(update={"sparse": config.sparse.model_copy(update={"arms": ["lth", "permuted"]})})
    plan, store = make_plan(config), Store(own / "store")
    keep_checked(store, check_networks(plan, store))
    assert len(list((own / "store" / "symmetry").iterdir())) == 1
    monkeypatch.setattr(symmetry, "_known", {})
    monkeypatch.setattr(symmetry, "derive_spec", lambda *arguments: pytest.fail("derived again"))
    graph = run_plan(plan, store)
    assert not graph.errors
    assert set(graph.states.values()) == {"done"}


def test_the_quickstart_is_tried_in_a_moment():
    import time

    from raylth.config.load import read_sweep

    plan = make_plan(read_sweep(Path(__file__).parents[3] / "sweeps/quickstart.yaml"))
    network_checks._passed.clear()
    start = time.perf_counter()
    check_networks(plan, Store("nowhere"))
    assert time.perf_counter() - start < 1.0
    assert DATASETS["mnist1d"].in_shape == (40,)


def test_what_does_not_fit_in_memory_is_reported_as_unchecked(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "psutil", SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=1000)))
    monkeypatch.setattr(hours, "shapes_of", lambda model: nn.Linear(3, 3, device="meta"))  # fails on any sample
    hours._forward.cache_clear()
    plan = make_plan(tiny_sweep(model={"widths": [0.5]}, seeds={"base": 77}))
    with pytest.warns(UserWarning, match=r"model\.name: mlp, width 0\.5 was not tried: that takes about .* of memory"):
        check_networks(plan, Store(tmp_path))
    found = hours.hours(plan, Graph(plan.stages), Store(tmp_path), lambda kind: (1, 0.0))
    trainings = sum(stage.epochs > 0 for stage in plan.stages)
    assert (found.num_unknown, found.num_counted, found.cpus) == (trainings, 0, 0.0)
    hours._forward.cache_clear()
