"""Networks and data sets that others wrote: by import path, from libraries, and from an installed package."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

from raylth.arms import ARMS
from raylth.cli.sweep import main
from raylth.common.registry import UnknownName
from raylth.config.load import BadSweep, read_sweep
from raylth.config.sweep import SweepConfig
from raylth.core.data import DATASETS
from raylth.core.masks import full_mask
from raylth.core.models import MODELS, build_model, build_shapes, code_of, init_model
from raylth.core.permutation import derive_spec, random_permutation
from raylth.driver.run_record import Run
from raylth.report import load_results
from raylth.stages import Graph, make_plan
from raylth.store import Store
from raylth.store.tables import DATASETS as TABLES

GUIDE = (Path(__file__).parents[3] / "docs/guides/networks.md").read_text()
(NETWORK,) = re.findall(r"```python\n(# mynets\.py\n.*?)```", GUIDE, re.DOTALL)
(DATA,) = re.findall(r"```python\n(# mydata\.py\n.*?)```", GUIDE, re.DOTALL)
SWEEP = {
    "name": "own", "seeds": {"replicates": 1}, "dense": {"epochs": 3}, "imp": {"epochs_per_round": 1},
    "sparse": {"arms": ["lth", "permuted", "naive"], "sparsities": [0.3], "rewinds": [1]},
}  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own, importable here."""
    (tmp_path / "mynets.py").write_text(NETWORK)
    (tmp_path / "mydata.py").write_text(DATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("mynets", "mydata"):
        sys.modules.pop(name, None)
    for registry in (MODELS, DATASETS):
        registry._found.clear()


@pytest.mark.parametrize(("name", "in_shape"), [("torchvision:resnet18", (3, 32, 32)), ("timm:resnet10t", (3, 64, 64))])
def test_networks_of_libraries_have_a_right_permutation(name, in_shape):
    settings = {"width": 1, "num_classes": 10, "in_shape": in_shape}
    network = init_model(0, name, **settings).eval()
    x = torch.randn(4, *in_shape)
    spec = derive_spec(network, x[:2])
    moved = build_model(name, **settings).eval()
    moved.load_state_dict(random_permutation(spec, 1).apply(network.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(moved(x), network(x), rtol=1e-4, atol=1e-4)
    assert full_mask(build_shapes(name, **settings)).keys() == full_mask(network).keys()


def test_networks_that_a_library_lacks_are_refused():
    settings = {"num_classes": 10, "in_shape": (3, 32, 32)}
    with pytest.raises(ValueError, match="networks of timm have only width 1"):
        build_model("timm:resnet10t", width=2, **settings)
    with pytest.raises(ValueError, match="3 channels, not 1"):
        build_model("torchvision:resnet18", num_classes=10, in_shape=(1, 32, 32))
    for name in ("timm:resnet", "torchvision:nothing", "nowhere.at.all:fn", "math:nothing"):
        with pytest.raises(UnknownName, match=f"model '{name}' cannot be imported"):
            build_model(name, **settings)


def test_the_code_of_ones_own_network_is_known_by_its_syntax(own):
    settings = {"num_classes": 10, "in_shape": (40,)}
    code = code_of("mynets:narrow", MODELS["mynets:narrow"])
    assert code is not None
    assert code_of("mlp", MODELS["mlp"]) is None
    build_model("mynets:narrow", code=code, **settings)
    file = own / "mynets.py"
    file.write_text(NETWORK + "  # the end")
    assert code_of("mynets:narrow", MODELS["mynets:narrow"]) == code, "a comment"
    file.write_text(NETWORK.replace("nn.ReLU(), nn.Linear(hidden, hidden)", "nn.GELU(), nn.Linear(hidden, hidden)"))
    with pytest.raises(RuntimeError, match="is not the same code here as where the sweep was planned"):
        build_model("mynets:narrow", code=code, **settings)


def test_the_code_behind_a_partial_and_a_data_set_is_ones_own(own):
    (own / "mynets.py").write_text(NETWORK + "\n\nfrom functools import partial\nhalf = partial(narrow)\n")
    code = code_of("mynets:half", MODELS["mynets:half"])
    assert code is not None
    (own / "mynets.py").write_text(NETWORK + "\n\nfrom functools import partial\nhalf = partial(narrow, x=1)\n")
    assert code_of("mynets:half", MODELS["mynets:half"]) != code
    settings = {**SWEEP, "data": {"import": "mydata:blobs"}, "model": {"name": "mlp"}}
    keys = []
    for text in (DATA, DATA.replace("* 4", "* 0")):
        (own / "mydata.py").write_text(text)
        keys.append([stage.key for stage in make_plan(SweepConfig.model_validate(settings)).stages])
    assert not set(keys[0]) & set(keys[1])


def test_the_modules_of_a_run_are_kept_as_they_were(own):
    (own / "helper.py").write_text("WIDTH = 2\n")
    (own / "mynets.py").write_text("import numpy\nfrom helper import WIDTH\n" + NETWORK)
    config = SweepConfig.model_validate({**SWEEP, "data": {"import": "mydata:blobs"}, "model": {"import": "mynets:narrow"}})
    store, graph = Store(own / "store"), Graph([])
    for text in ("WIDTH = 2\n", "WIDTH = 2  # wider\n"):
        (own / "helper.py").write_text(text)
        run = Run.open(config, store)
        assert set(run.sources) == {"mynets", "mydata", "helper"}, "and nothing that is installed"
        (own / "helper.py").write_text("edited while the run continues\n")
        run.write({name: [] for name in TABLES}, graph)
        manifest = json.loads((run.folder / "manifest.json").read())
        assert (run.folder / manifest["code"]["helper"]).read().decode() == text
    assert len((run.folder / "code").names()) == 4, "of both starts"
    (own / "myarms.py").write_text("from raylth.arms import Arm\nearly = Arm('A', 'none', 'x')\n")
    sparse = {**SWEEP["sparse"], "arms": ["naive", "myarms:early"]}
    arms = SweepConfig.model_validate({**SWEEP, "data": {"name": "mnist1d"}, "model": {"name": "mlp"}, "sparse": sparse})
    assert set(Run.open(arms, store).sources) == {"myarms"}
    sys.modules.pop("myarms")
    ARMS._found.clear()
    plain = SweepConfig.model_validate({**SWEEP, "data": {"name": "mnist1d"}, "model": {"name": "mlp"}})
    assert Run.open(plain, store).sources == {}


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("mynets.py", "def narrow(", "SyntaxError"),
        ("mynets.py", "narrow = 3", "TypeError"),
        ("mynets.py", "def narrow(): pass", "TypeError"),
        ("mydata.py", "blobs = 3", "not a raylth.core.data.DatasetInfo"),
    ],
)
def test_what_is_wrong_with_ones_own_module_is_one_line(own, file, text, line):
    (own / file).write_text(text)
    settings = {**SWEEP, "data": {"import": "mydata:blobs"}, "model": {"import": "mynets:narrow"}}
    (own / "own.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(BadSweep) as caught:
        read_sweep(own / "own.yaml")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_of_ones_own_network_and_data_by_import_path(own, monkeypatch, capsys):
    settings = {**SWEEP, "data": {"import": "mydata:blobs"}, "model": {"import": "mynets:narrow"}, "storage": "store"}
    (own / "own.yaml").write_text(yaml.safe_dump(settings))
    command = [str(Path(sys.executable).with_name("raylth")), "sweep", "own.yaml"]  # it looks here, too
    done = subprocess.run(command, cwd=own, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = load_results(own / "store").query("stage == 'sparse'")
    assert set(rows["arm"]) == {"lth", "permuted", "naive"}
    assert set(rows["model"]) == {"mynets:narrow"}
    assert rows["test_accuracy"].min() > 50, "three blobs are told apart"
    (folder,) = (own / "store" / "runs").iterdir()
    kept = json.loads((folder / "manifest.json").read_text())["code"]
    assert {module: (folder / file).read_text() for module, file in kept.items()} == {
        "mynets": NETWORK, "mydata": DATA,
    }, "the modules as they were"  # fmt: skip
    monkeypatch.chdir(own)
    assert main(["own.yaml", "model.import=mynets:wide"]) == 2
    assert "model 'mynets:wide' cannot be imported" in capsys.readouterr().err


def test_a_plugin_provides_networks_under_its_own_names(tmp_path, monkeypatch, capsys):
    """A package with an entry point, installed by pip into a folder of its own."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "narrownets.py").write_text(NETWORK)
    (package / "pyproject.toml").write_text(
        textwrap.dedent("""
        [project]
        name = "narrownets"
        version = "1"
        [project.entry-points."raylth.models"]
        narrow = "narrownets:narrow"
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [tool.hatch.build.targets.wheel]
        include = ["narrownets.py"]
        """)
    )
    installed = tmp_path / "installed"
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "-q", "--python", sys.executable]
    subprocess.run([*uv, "--no-deps", "--target", str(installed), str(package)], check=True, capture_output=True)
    settings = {**SWEEP, "data": {"name": "digits"}, "model": {"name": "narrow"}, "storage": "store"}
    settings["sparse"] = {**SWEEP["sparse"], "arms": ["lth"]}
    (tmp_path / "plugin.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "raylth.sweep", "plugin.yaml"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(load_results(tmp_path / "store")["model"]) == {"narrow"}
    monkeypatch.chdir(tmp_path)
    assert main(["plugin.yaml"]) == 2
    errors = capsys.readouterr().err
    assert "plugin.yaml" in errors
    assert "unknown model 'narrow'" in errors
