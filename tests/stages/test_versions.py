"""A network whose loading asks for its version, torchvision's mnasnet0_5, through a whole sweep and out of its store."""

import importlib.util
import sys

import pytest
import torch
from torchvision import models

from raylth.config.sweep import SweepConfig
from raylth.core.data import DATASETS
from raylth.core.models import MODELS
from raylth.driver.run_record import Run
from raylth.export.command import main
from raylth.export.stored_network import find_network
from raylth.report import load_results
from raylth.stages import make_plan, result_rows, run_plan
from raylth.store import Store

DATA = """
import numpy as np
from raylth.core.data import ArrayDataset, DatasetInfo
from torch import nn
from torchvision import models


def mnasnet(*, num_classes, **_):
    network = models.mnasnet0_5(num_classes=num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # its own, 0.0003, is of no use after a few steps
    return network


def load(**_):
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(48, 3, 32, 32)).astype("float32"), draws.integers(0, 4, 48)
    return ArrayDataset(x[:32], y[:32], x[32:], y[32:])


noise = DatasetInfo((3, 32, 32), 4, num_train=32, num_test=16, augment="none", from_files=False, load=load)
"""
STEP = {"batch_size": 16, "lr": 0.01}  # two in an epoch
SWEEP = {
    "name": "versions",
    "seeds": {"replicates": 1},
    "data": {"import": "pictures:noise"},
    "model": {"import": "pictures:mnasnet", "widths": [1]},
    "dense": {**STEP, "epochs": 2},
    "imp": {**STEP, "epochs_per_round": 1},
    "match": {"epochs": [2], "method": ["activation", "weight"]},
    "sparse": {**STEP, "arms": ["lth", "permuted"], "sparsities": [0.2], "rewinds": [1]},
    "connect": {"points": 3, "corrections": ["plain", "reset", "repair"], "samples": 32},
    "analyses": {"planes": [{"through": ["A", "lth", "pi^-1(permuted)"], "sparsity": 0.2, "rewind": 1, "resolution": 2}]},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The store of a finished sweep over pictures of noise."""
    folder = tmp_path_factory.mktemp("versions")
    (folder / "pictures.py").write_text(DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        config = SweepConfig.model_validate(SWEEP)
        plan, store = make_plan(config), Store(folder / "store")
        graph = run_plan(plan, store)
        assert not graph.errors
        run = Run.open(config, store)
        run.write(result_rows(plan, graph, store, run.name), graph)
        yield store
    sys.modules.pop("pictures", None)
    for registry in (MODELS, DATASETS):
        registry._found.clear()


def test_it_is_trained_matched_joined_and_leaves_the_store(store, tmp_path):
    rows = load_results(store.root)
    assert set(rows["status"]) == {"done"}
    assert {"lth", "permuted"} <= set(rows["arm"])
    key = rows[rows["arm"] == "permuted"].iloc[-1]["key"]
    network = find_network(store, key)
    taken_over = models.mnasnet0_5(num_classes=4)
    taken_over.load_state_dict(network.state)
    assert main([str(store.root), key, "--out", str(tmp_path / "out"), "--format", "torch-prune"]) == 0
    spec = importlib.util.spec_from_file_location("load", tmp_path / "out" / "load.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    loaded, x = script.load(models.mnasnet0_5(num_classes=4)), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = network.module()(x)
        for found in (taken_over.eval()(x), loaded(x)):
            torch.testing.assert_close(found, expected)
