"""`raylth check`: what a sweep starts from, tried and printed, with nothing written."""

import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from raylth.cli import check
from raylth.common.exit_codes import ExitCode
from raylth.core.data import DATASETS
from raylth.core.models import MODELS, init_model
from tests.conftest import NETWORKS

QUICKSTART = str(Path(__file__).resolve().parents[2] / "sweeps" / "quickstart.yaml")
SMALL = ["seeds.replicates=1", "sparse.sparsities=[0.8]", "sparse.rewinds=[0]", "storage=store"]
OWN = '''
import torch
from torch import nn

class Idle(nn.Module):
    """A network with a weight that nothing reads."""
    def __init__(self, width, num_classes, in_shape):
        super().__init__()
        self.hidden, self.head, self.idle = nn.Linear(40, 16), nn.Linear(16, num_classes), nn.Linear(40, 3)
    def forward(self, x):
        return self.head(self.hidden(x).relu())


class Picky(nn.Module):
    """A network that takes what it is tried with and refuses real values."""
    def __init__(self, width, num_classes, in_shape):
        super().__init__()
        self.head = nn.Linear(40, num_classes)
    def forward(self, x):
        if x.max() > 1e30:
            raise RuntimeError("too loud:" + chr(10) + "turn it down")
        return self.head(x)


import numpy as np
from raylth.core.data import ArrayDataset, DatasetInfo

def load():
    x, y = np.full((200, 40), 1e38, dtype="float32"), np.arange(200) % 10
    return ArrayDataset(x, y, x, y)

huge = DatasetInfo((40,), 10, 200, 200, "none", from_files=False, load=load)
'''


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder with a module of one's own; returns exit status, output and errors."""
    (tmp_path / "ournets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def command(*arguments, file=QUICKSTART):
        status = check.main([file, *arguments])
        assert set(os.listdir()) - {"__pycache__"} == {"ournets.py"}, "nothing is written"
        return status, *capsys.readouterr()

    yield command
    sys.modules.pop("ournets", None)
    MODELS._found.clear()
    DATASETS._found.clear()


def test_it_says_what_the_data_and_the_networks_are_and_what_the_sweep_costs(run):
    status, out, err = run(*SMALL, "model.widths=[0.5,1]")
    assert (status, err) == (ExitCode.OK, "")
    assert "  training: 4,000 samples of shape (40,); 10 classes, " in out
    assert "  test: 1,000 samples of shape (40,); 10 classes, " in out
    for width in (0.5, 1.0):
        network = init_model(0, **{**NETWORKS["mlp"], "width": width})
        total = sum(parameter.numel() for parameter in network.parameters())
        layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
        prunable = sum(layer.weight.numel() for layer in layers)
        units = sum(layer.out_features for layer in layers[:-1])
        (at,) = re.finditer(rf"mlp, width {width:g}: {total:,} parameters, {prunable:,} of them prunable, in 4 layers\n", out)
        lines = out[at.end() :].splitlines()
        assert lines[0].startswith(f"  symmetry: 3 groups of {units:,} units (fc1 {units // 3}, ")
        (loss,) = re.findall(r"loss ([\d.]+) nats \(a guess has 2.303\)", lines[1])
        assert abs(float(loss) - math.log(10)) < 1.5
        assert "32 samples" in lines[1]
    assert "nothing was started" in out, "the plan and its cost"


def test_one_of_ones_own_is_tried_as_it_is_trained(run):
    status, out, err = run(*SMALL, "model.name=ournets:Idle")
    assert (status, err) == (ExitCode.OK, "")
    assert "no gradient for idle.weight, idle.bias" in out
    assert "1 groups of 16 units (hidden 16)" in out


def test_a_loss_that_is_not_finite_on_the_real_data_is_one_line(run):
    status, _, err = run(*SMALL, "data.name=ournets:huge", "match.samples=100", "connect.samples=100")
    assert status == ExitCode.BAD_INPUT
    assert ": model.name: mlp, width 1: its " in err, err
    assert "on a first batch" in err
    assert err.endswith("; inputs are 1e+38 to 1e+38\n"), err


def test_a_network_that_raises_on_the_real_data_is_one_line(run):
    settings = [
        "data.name=ournets:huge",
        "match.samples=100",
        "connect.samples=100",
        "analyses={}",
        "sparse.arms=[lth,naive]",
    ]
    status, _, err = run(*SMALL, "model.name=ournets:Picky", *settings)
    assert status == ExitCode.BAD_INPUT
    assert err.endswith("model.name: ournets:Picky, width 1: RuntimeError on a first batch: too loud: turn it down\n"), err
    assert err.count("\n") == 1


def test_data_that_are_not_there_are_one_line(run):
    where = ["data.name=cifar10", "data.root=nowhere", "model.name=resnet20", *SMALL]
    status, _, err = run(*where)
    assert status == ExitCode.BAD_INPUT
    assert "data.root" in err
    assert "nowhere" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("wrong", ["model.name=mpl", "sparse.sparsities=[2]", "nothing=1"])
def test_a_mistake_is_one_line_with_its_key(run, wrong):
    status, out, err = run(*SMALL, wrong)
    assert (status, out) == (ExitCode.BAD_INPUT, "")
    assert err.startswith(f"command line: {wrong.split('=')[0]}")
    assert err.count("\n") == 1


def test_a_search_is_checked_by_its_last_sweep(run):
    file = str(Path(QUICKSTART).with_name("fair_comparison.yaml"))
    status, out, err = run("storage=store", file=file)
    assert (status, err) == (ExitCode.OK, "")
    assert "first batch" in out
    assert "nothing was started" in out
