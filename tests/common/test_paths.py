"""Paths with `~` and variables, wherever a sweep file or a command takes a path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from raylth.cli import data, results, status
from raylth.common.paths import contracted, expanded
from raylth.config.load import BadSweep, read_sweep
from raylth.config.sweep import SweepConfig
from raylth.core.data import DataError
from raylth.core.data.streamed.dataset import ImageFiles
from raylth.export.command import main as export
from raylth.report.command import main as report
from raylth.stages import make_plan, run_plan
from raylth.stages.mask_files import export_mask, read_mask_file
from raylth.store import Store, locate
from tests.conftest import tiny_sweep


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, another folder to work in, and a variable."""
    place = tmp_path / "home"
    place.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path / "here")
    yield place
    assert not [name for name in os.listdir() if name.startswith(("~", "$"))], "a folder of that very name came about"


def test_what_is_filled_in(home, tmp_path):
    assert expanded("~/store") == f"{home}/store"
    assert expanded("~") == str(home)
    assert expanded("~root/x") == f"{os.path.expanduser('~root')}/x"
    assert expanded("$SCRATCH/a/${SCRATCH}") == f"{tmp_path}/scratch/a/{tmp_path}/scratch"
    for same in ("a/~b", "./~", "s3://bucket/~/x?y=$z", "5$", "a$1b", "/abs", "a b"):
        assert expanded(same) == same
    for wrong, line in (
        ("~nobody-of-that-name/x", "no home folder '~nobody-of-that-name'"),
        ("$NOWHERE_AT_ALL/x", "no variable"),
    ):
        with pytest.raises(ValueError, match=line):
            expanded(wrong)
        with pytest.raises(ValueError, match=line):
            locate(wrong)
    assert contracted(f"{home}/store") == "~/store"
    assert contracted(f"{home}-2/store") == f"{home}-2/store"


def test_every_path_of_a_sweep_file_and_of_the_command_line(home, tmp_path):
    settings = {
        "name": "paths", "storage": "~/store", "data": {"name": "cifar10", "root": "$SCRATCH/cifar"},
        "model": {"name": "resnet20"},
        "log": {"tensorboard": "~/boards", "wandb": {"folder": "~/wandb"}, "mlflow": "sqlite:///~/mlflow.db"},
        "sparse": {"mask_from": "~/masks/{replicate}-{sparsity}.safetensors"},
    }  # fmt: skip
    Path("paths.yaml").write_text(yaml.safe_dump(settings))
    config = read_sweep("paths.yaml")
    assert config.storage == f"{home}/store"
    assert config.data.root == f"{tmp_path}/scratch/cifar"
    assert config.sparse.mask_from == f"{home}/masks/{{replicate}}-{{sparsity}}.safetensors"
    assert (config.log.tensorboard, config.log.wandb.folder) == (f"{home}/boards", f"{home}/wandb")
    assert config.log.mlflow == f"sqlite:///{home}/mlflow.db"
    words = ["storage=~/other", "data.root=~/data", "sparse.mask_from=$SCRATCH/mask.pt", "log.mlflow=file:~/runs"]
    config = read_sweep("paths.yaml", words)
    assert (config.storage, config.data.root) == (f"{home}/other", f"{home}/data")
    assert config.sparse.mask_from == f"{tmp_path}/scratch/mask.pt"
    assert config.log.mlflow == f"file:{home}/runs"
    for word in ("storage", "data.root", "sparse.mask_from", "log.tensorboard", "log.wandb.folder"):
        with pytest.raises(BadSweep, match=f"^command line: {word}: '~nobody-at-all/x': there is no home folder"):
            read_sweep("paths.yaml", [f"{word}=~nobody-at-all/x"])
    assert SweepConfig.model_validate(config.model_dump(mode="json")) == config, "what a manifest holds is read as it is"


def test_each_machine_has_a_home_of_its_own_for_staged_files(home, tmp_path):
    files = ImageFiles("train", "test", 32, 10, (), (), (1, 1))
    assert files.staged("~/scratch").staging == "~/scratch"
    assert files.staged("scratch").staging == f"{tmp_path}/here/scratch"
    with pytest.raises(DataError, match=r"^resources\.staging: .*no variable NOWHERE"):
        files.staged("$NOWHERE/x")


def test_commands_take_such_paths(home, tmp_path, capsys):
    """A store below the home folder, from its sweep to each of the commands that read it."""
    config = tiny_sweep(storage="~/store", sparse={"arms": ["naive"], "sparsities": [0.3], "rewinds": [0]},
                        dense={"epochs": 1}, match={"epochs": [1]})  # fmt: skip
    plan, store = make_plan(config), Store("~/store")
    assert set(run_plan(plan, store).states.values()) == {"done"}
    (key,) = [stage.key for stage in plan.stages if stage.kind == "sparse"]
    assert store.has(key)
    assert Store(home / "store").has(key)
    export_mask(store, key, "~/mask.pt")
    shapes = {name: torch.tensor(array) for name, array in store.tensors(key, "weights").items()}
    network = torch.nn.Module()
    for name, tensor in shapes.items():
        network.register_buffer(name.replace(".", "_"), tensor)
    with pytest.raises(ValueError, match=f"^{home}/mask.pt: ") as caught:  # it was found
        read_mask_file("~/mask.pt", network)
    assert "cannot be read" not in str(caught.value)
    for words, command in (
        (["~/nothing"], report), (["~/nothing"], results.main), (["~/nothing"], status.main), (["~/nothing", key], export),
        (["imagenet", "~/nothing", "~/out"], data.main),
    ):  # fmt: skip
        assert command(words) == 2
        assert f"{home}/nothing" in capsys.readouterr().err or command is status.main
    assert export([str(home / "store"), key, "--out=~/store"]) == 2
    assert f"{home}/store exists" in capsys.readouterr().err


def test_a_sweep_below_home_by_its_command(home):
    settings = {"name": "home", "storage": "~/store", "data": {"name": "mnist1d"}, "model": {"name": "mlp"}}
    Path("home.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "raylth.sweep", "home.yaml", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert f"storage: {home}/store" in done.stdout
