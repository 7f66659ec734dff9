"""Networks that leave a store: loaded in a new process without raylth, each gets as many right as its row says."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from raylth.core.data import DATASETS, ArrayDataset, cifar, load_dataset
from raylth.core.data.digits import NUM_TRAIN, SPLIT_SEED
from raylth.core.data.subset import stratified_order
from raylth.core.masks import full_mask
from raylth.core.models import build_shapes
from raylth.core.pruning import prune_global_magnitude
from raylth.driver.run_record import Run
from raylth.export import formats
from raylth.export.command import main
from raylth.export.load_script import snippet
from raylth.export.stored_network import find_network
from raylth.report import load_results
from raylth.stages import make_plan, result_rows, run_plan
from raylth.stages.arrays import to_torch
from raylth.store import Store, locate
from raylth.store.tables import append_rows
from tests.conftest import tiny_sweep

TRAINED = {"batch_size": 8}  # steps enough to be far from chance, where any network looks like any other
MLP = {
    "dense": {**TRAINED, "epochs": 4},
    "imp": {**TRAINED, "epochs_per_round": 1},
    "match": {"epochs": [4]},
    "sparse": {**TRAINED, "arms": ["lth", "permuted", "random"], "sparsities": [0.5], "rewinds": [1], "lr": 0.05},
}
RESNET = {
    "name": "small",
    "data": {"name": "digits", "num_train": 400, "num_test": 200},
    "model": {"name": "resnet20", "widths": [0.25]},
    "dense": {**TRAINED, "epochs": 3},
    "match": {"epochs": [3]},
    "sparse": {**TRAINED, "arms": ["permuted"], "sparsities": [0.5], "rewinds": [1], "lr": 0.05},
}

COUNT = """
import importlib.util, json, sys, numpy as np
for name, (folder, samples) in json.loads(sys.argv[1]).items():
    spec = importlib.util.spec_from_file_location("load", f"{folder}/load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load, normalise = module.load, module.normalise
    samples, labels = np.load(f"{samples}/x.npy"), np.load(f"{samples}/y.npy")
    for count in (1, None):  # any batch
        logits = run(load, normalise, samples[:count], name)
    print(name, int((np.asarray(logits).argmax(1) == labels).sum()))
"""
FREE = 'assert "raylth" not in sys.modules'
TORCH = """
import torch
def run(load, normalise, samples, name):
    with torch.inference_mode():
        return load()(normalise(torch.tensor(samples)))
"""
PRUNED = """
import torch
def run(load, normalise, samples, name):
    with torch.inference_mode():
        return load(OwnResnet() if "digits" in name else Own())(normalise(torch.tensor(samples)))
"""
ONNX = """
def run(load, normalise, samples, name):
    return load()(normalise(samples))
"""
OWN = """
import torch
class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, inputs, outputs in (("fc1", 40, 32), ("fc2", 32, 32), ("fc3", 32, 32), ("head", 32, 10)):
            setattr(self, name, torch.nn.Linear(inputs, outputs))
    def forward(self, x):
        return self.head(self.fc3(self.fc2(self.fc1(x).relu()).relu()).relu())
"""
OWN_RESNET = """
def OwnResnet():
    from raylth.core.models import build_model
    return build_model("resnet20", width=0.25, num_classes=10, in_shape=(1, 8, 8))
"""


def run_sweep(store, **settings):
    config = tiny_sweep(**settings)
    plan = make_plan(config)
    graph = run_plan(plan, store)
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    return plan


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two sweeps in one store, and the samples that they were tested on as they come, not normalised."""
    folder = tmp_path_factory.mktemp("export")
    store = Store(folder / "store")
    run_sweep(store, **MLP)
    run_sweep(store, **RESNET)
    signals = load_dataset("mnist1d", num_test=200)
    for name, x, y in (("mnist1d", signals.test_x, signals.test_y), ("digits", *raw_digits())):
        (folder / name).mkdir()
        np.save(folder / name / "x.npy", x)
        np.save(folder / name / "y.npy", y)
    return store


def raw_digits():
    """The 200 test images that the sweep takes, as scikit-learn has them: 0 to 16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    test = np.random.default_rng(SPLIT_SEED).permutation(len(bunch.target))[NUM_TRAIN:]
    test = test[stratified_order(bunch.target[test], "test")[:200]]
    return bunch.images[test][:, None].astype(np.uint8), bunch.target[test]


def row_of(store, **cell):
    results = load_results(store.root)
    for name, value in cell.items():
        results = results[results[name] == value]
    return results.iloc[-1]


def exported(store, row, tmp_path, *options):
    assert main([str(store.root), row["key"], "--out", str(tmp_path / "out"), *options]) == 0
    return tmp_path / "out"


NETWORKS = {
    "dense": {"dataset": "mnist1d", "stage": "dense", "network": "B"},
    "imp": {"dataset": "mnist1d", "stage": "imp"},
    "lth": {"dataset": "mnist1d", "arm": "lth"},
    "permuted": {"dataset": "mnist1d", "arm": "permuted"},
    "digits": {"dataset": "digits", "arm": "permuted"},
}
SCRIPTS = {"safetensors": TORCH, "hf": TORCH, "torch-prune": OWN + OWN_RESNET + PRUNED, "onnx": ONNX}


@pytest.fixture(scope="module")
def loaded(store, tmp_path_factory):
    """A function: format -> name of a network -> (row, its folder, what a new process with its load.py gets right)."""

    @cache
    def load(kind):
        rows = {name: row_of(store, **cell) for name, cell in NETWORKS.items()}
        folders = {name: exported(store, row, tmp_path_factory.mktemp(name), "--format", kind) for name, row in rows.items()}
        samples = store.root.path.parent
        places = json.dumps({name: (str(folders[name]), str(samples / row["dataset"])) for name, row in rows.items()})
        script = SCRIPTS[kind] + COUNT + ("" if kind == "torch-prune" else FREE)
        command = [sys.executable, "-c", script, places]
        done = subprocess.run(command, cwd=samples, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        right = dict(line.split() for line in done.stdout.splitlines())
        assert min(row["test_accuracy"] for row in rows.values()) > 20, "far from chance"
        return {name: (row, folders[name], int(right[name])) for name, row in rows.items()}

    return load


def pruned_share(mask):
    return 1 - sum(int(kept.sum()) for kept in mask.values()) / sum(kept.numel() for kept in mask.values())


def names_in(folder):
    """Return the names of what was exported, without what Python leaves where it imports load.py."""
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


@pytest.mark.parametrize("kind", ["safetensors", "hf"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_and_program_are_the_network_of_the_row(loaded, name, kind):
    row, folder, right = loaded(kind)[name]
    assert 100 * right / 200 == row["test_accuracy"]
    weights, inside = load_file(folder / "model.safetensors"), torch.export.load(folder / "model.pt2").state_dict
    assert weights.keys() == inside.keys()
    assert all(torch.equal(weights[name], inside[name]) for name in weights)
    files = {"README.md", "config.json", "load.py", "model.safetensors", "model.pt2"}
    if name == "dense":
        assert names_in(folder) == files, "there is no mask"
        return
    assert names_in(folder) == {*files, "mask.safetensors"}
    mask = load_file(folder / "mask.safetensors")
    assert {kept.dtype for kept in mask.values()} == {torch.uint8}
    assert all(int(weights[name][kept == 0].count_nonzero()) == 0 for name, kept in mask.items())
    assert pruned_share(mask) == row["mask_sparsity"]
    zeros = {name: (weights[name] != 0) for name in mask}
    assert pruned_share(zeros) == pytest.approx(row["mask_sparsity"], abs=1e-3), "hardly an alive weight is 0"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_pruned_state_dict_loads_into_a_network_of_ones_own(loaded, name):
    row, folder, right = loaded("torch-prune")[name]
    assert 100 * right / 200 == row["test_accuracy"]
    state = torch.load(folder / "model.pt", weights_only=True)
    masks = {name: kept for name, kept in state.items() if name.endswith("_mask")}
    assert bool(masks) == (name != "dense")
    assert not masks or pruned_share(masks) == row["mask_sparsity"]


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_is_the_network_of_the_row(store, loaded, name):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    row, folder, right = loaded("onnx")[name]
    assert abs(right - 2 * row["test_accuracy"]) <= 1
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    values = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    mask = store.tensors(row["key"], "mask") if name != "dense" else {}
    assert all(not values[name][~alive].any() for name, alive in mask.items())


@pytest.mark.parametrize(("kind", "shown"), [("safetensors", "tensor([["), ("torch-prune", "fc1.weight_orig (32, 40)")])
def test_load_is_a_program_that_runs_as_it_is(loaded, kind, shown):
    command = [sys.executable, loaded(kind)["lth"][1] / "load.py"]
    assert shown in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_card_and_config_say_where_the_permuted_network_comes_from(store, tmp_path):
    row = row_of(store, dataset="digits", arm="permuted")
    folder = exported(store, row, tmp_path)
    text, told = (folder / "README.md").read_text(), json.loads((folder / "config.json").read_text())
    match = next(stage for stage in make_plan(tiny_sweep(**RESNET)).stages if stage.kind == "match")
    dense = {name: row_of(store, dataset="digits", stage="dense", network=name)["key"] for name in "AB"}
    for expected in (
        f"| A, as it was matched | `{dense['A']}`: dense(",
        f"| B, as it was matched | `{dense['B']}`: dense(",
        f"| key of the permutation | `{match.key}` |",
        "| method | activation |",
        "| epoch of B | 3 |",
        "| samples | 400 |",
        "network=B, sparsity=0), epoch 1 |",
        f"| test accuracy | {row['test_accuracy']:g} % |",
        f"`{row['data_sha256']}`",
        f"`{row['run']}`",
        f"| seeds of A, B | {row['seed_a']}, {row['seed_b']} |",
        "std = [6.01",
        "torch.export.load",
    ):
        assert expected in text
    assert not text.startswith("---")
    assert (told["model"], told["width"], told["num_classes"], told["in_shape"]) == ("resnet20", 0.25, 10, [1, 8, 8])
    assert (told["key"], told["sparsity"], told["mask_sparsity"]) == (row["key"], 0.5, row["mask_sparsity"])
    assert told["normalisation"]["mean"] == [pytest.approx(4.887, abs=1e-3)]
    assert str(store.root) not in text, "where the sweep ran is nobody's business"
    settings = yaml.safe_load(text.rpartition("```yaml\n")[2].partition("```")[0])
    assert settings["dense"]["epochs"] == 3
    assert not {"storage", "resources", "log"} & settings.keys()
    assert "root" not in settings["data"]


@pytest.mark.parametrize("place", ["s3", "gs"], indirect=True)
def test_a_store_in_a_bucket_gives_the_same_files(store, loaded, tmp_path, place):
    row, folder, _ = loaded("torch-prune")["permuted"]
    for name in store.root.files():
        (locate(place) / name).write((store.root / name).read())
    again = exported(Store(place), row, tmp_path, "--format", "torch-prune")
    for name in ("README.md", "config.json", "load.py"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    states = [torch.load(where / "model.pt", weights_only=True) for where in (folder, again)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_compact_network_is_smaller_and_the_one_of_the_row(store, tmp_path, capsys):
    study = {**MLP, "name": "units", "mask": {"finder": "oneshot", "structure": {"pattern": "units"}}}
    study["sparse"] = {**MLP["sparse"], "arms": ["permuted"]}
    run_sweep(own := Store(tmp_path / "store"), **study)
    row = row_of(own, arm="permuted")
    folder = exported(own, row, tmp_path, "--compact")
    weights, whole = load_file(folder / "model.safetensors"), to_torch(own.tensors(row["key"], "weights"), "cpu")
    assert weights.keys() == whole.keys()
    alive = sum(int(tensor.count_nonzero()) for tensor in whole.values() if tensor.ndim == 2)
    assert sum(tensor.numel() for tensor in weights.values() if tensor.ndim == 2) == alive
    assert names_in(folder) == {"README.md", "config.json", "load.py", "model.safetensors", "model.pt2"}
    samples = (np.load(store.root.path.parent / "mnist1d" / f"{name}.npy") for name in "xy")
    x, y = (torch.tensor(array) for array in samples)
    found = torch.export.load(folder / "model.pt2").module()(x.float()).argmax(1)
    assert 100 * int((found == y).sum()) / len(y) == row["test_accuracy"]
    total = sum(tensor.numel() for tensor in weights.values())
    assert f"{total:,}: units that no weight reads or writes are left out" in (folder / "README.md").read_text()
    capsys.readouterr()
    assert main([str(own.root), row["key"], "--compact", "--format", "torch-prune"]) == 2
    assert main([str(own.root), row_of(own, stage="dense")["key"], "--compact"]) == 2
    messages = capsys.readouterr().err.splitlines()
    assert messages[0] == "--compact: torch-prune is a format of masks, and a smaller network has none: choose another"
    assert messages[1].endswith("has no mask: there is nothing to leave out")


def test_what_was_not_permuted_says_so(store, tmp_path):
    text = (exported(store, row_of(store, arm="random"), tmp_path) / "README.md").read_text()
    assert "No permutation was matched for it." in text
    assert "seed of the mask's shuffle or permutation" in text
    assert "as it was matched" not in text


def test_the_hub_reads_the_card(store, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    row = row_of(store, arm="permuted", dataset="digits")
    card = hub.ModelCard.load(exported(store, row, tmp_path, "--format", "hf") / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == row["test_accuracy"] / 100
    assert (result.dataset_type, result.metric_type, card.data.license) == ("digits", "accuracy", "other")
    assert {"permuted", "resnet20"} <= set(card.data.tags)


def test_a_beginning_of_the_key_names_a_folder_here(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    key = row_of(store, arm="lth")["key"]
    assert main([str(store.root), key[:10]]) == 0
    assert capsys.readouterr().out == f"{key[:12]}-safetensors\n"
    assert [path.name for path in tmp_path.iterdir()] == [f"{key[:12]}-safetensors"]
    before = (tmp_path / f"{key[:12]}-safetensors/README.md").stat().st_mtime_ns
    assert main([str(store.root), key[:10]]) == 2
    error = capsys.readouterr().err
    assert error == f"{key[:12]}-safetensors exists: name another folder with --out\n"
    assert (tmp_path / f"{key[:12]}-safetensors/README.md").stat().st_mtime_ns == before


def test_of_several_runs_that_have_the_network_the_one_that_finished_it_counts(store, tmp_path):
    shutil.copytree(store.root.path, tmp_path / "store")
    row = row_of(store, arm="lth")
    failed = {"key": row["key"], "sweep": "zzz", "run": "zzz", "stage": "sparse", "status": "failed", "error": "no"}
    append_rows(locate(tmp_path / "store"), "results", "zzz", [failed], {})
    folder = exported(Store(tmp_path / "store"), row, tmp_path)
    assert f"`{row['run']}`" in (folder / "README.md").read_text()


def test_rows_of_an_older_raylth_lack_columns(store, tmp_path):
    shutil.copytree(store.root.path, tmp_path / "store")
    for path in (tmp_path / "store/results").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["test_top5", "member"]), path)
    folder = exported(Store(tmp_path / "store"), row_of(store, arm="lth"), tmp_path)
    assert "top 5" not in (folder / "README.md").read_text()


def test_the_command_line(store, tmp_path):
    command = [sys.executable, "-m", "raylth.export", str(store.root), "xyz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def key_of_match(store):
    return next(stage for stage in make_plan(tiny_sweep(**MLP)).stages if stage.kind == "match").key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{nowhere}", "abc"], "nowhere/results: no results here; expected *.parquet"),
        (["ftp://x", "abc"], "ftp:// is unknown"),
        (["{store}", "xyz"], "no network has the key 'xyz': the column `key` of the results names the networks"),
        (["{store}", ""], "'' is a prefix of "),
        (
            ["{store}", "{match}"],
            "' was made by the stage 'match', and is not a trained network: the column `key` of the",
        ),
        (["{store}", "abc", "--out", "s3://bucket/folder"], "--out: s3://bucket/folder is not a folder of this machine"),
        (["{store}", "abc", "--out", "{store}"], "store exists: name another folder with --out"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(store, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {"nowhere": tmp_path / "nowhere", "store": store.root, "match": key_of_match(store)[:20]}
    assert main([argument.format(**names) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_one_line_with_the_command(store, tmp_path, monkeypatch, capsys, package):
    there = [name for name in formats.NEEDED["onnx"] if name != package]
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: name in there or None)
    key = row_of(store, arm="lth")["key"]
    assert main([str(store.root), key, "--format", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"onnx: {package} is missing: pip install 'raylth[onnx]'\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_failure(store, tmp_path, monkeypatch, capsys, error):
    def fail(network, kind):
        assert list(tmp_path.rglob("model.safetensors")), "the network was written"
        raise error

    monkeypatch.setattr("raylth.export.model_card.card", fail)
    options = [str(store.root), row_of(store, arm="lth")["key"], "--out", str(tmp_path / "a/b/out")]
    assert main(options) == (2 if isinstance(error, OSError) else 130)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_network_is_not_exported(store, tmp_path, capsys):
    key = row_of(store, arm="lth")["key"]
    path = next(store.folder(key).path.glob("weights.*"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        assert main([str(store.root), key, "--out", str(tmp_path / "out")]) == 2
    finally:
        path.write_bytes(data)
    error = capsys.readouterr().err
    assert "does not match its SHA-256" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_pruned_weights_that_are_not_zero_are_not_exported(store, tmp_path, capsys):
    key = row_of(store, arm="lth")["key"]
    shutil.copytree(store.root.path, tmp_path / "store")
    tensors = {name: dict(store.tensors(key, name)) for name in ("weights", "mask")}
    tensors["weights"]["head.weight"] = tensors["weights"]["head.weight"] + 1
    Store(tmp_path / "store").publish(key, kind="sparse", tensors=tensors, metrics=store.metrics(key))
    assert main([str(tmp_path / "store"), key, "--out", str(tmp_path / "out")]) == 2
    assert "pruned weights are not zero" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_network_that_diverged_and_a_mask_alone_are_none(tmp_path, capsys):
    store = Store(tmp_path / "store")
    network = build_shapes("mlp", width=0.25, num_classes=10, in_shape=(40,))
    state = {name: torch.randn(tensor.shape) for name, tensor in network.state_dict().items()}
    mask = prune_global_magnitude(
        state, {name: torch.ones(kept.shape) > 0 for name, kept in full_mask(network).items()}, fraction=0.5
    )
    save_file(mask, tmp_path / "mask.safetensors")
    sparse = {"arms": ["naive"], "sparsities": [0.5], "rewinds": [0], "mask_from": str(tmp_path / "mask.safetensors")}
    run_sweep(store, sparse={**sparse, "lr": 999, "momentum": 0.99})
    (tmp_path / "mask.safetensors").unlink()
    for stage, message in (("sparse", "its training diverged (training diverged in epoch"), ("mask", "is a mask alone")):
        assert main([str(store.root), row_of(store, stage=stage)["key"], "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    dense = exported(store, row_of(store, stage="dense"), tmp_path)
    assert "are not known: the sweep cannot be planned again here: sparse.mask_from" in (dense / "README.md").read_text()


OWN_NETWORK = """
import torch
def build(*, width, num_classes, in_shape):
    hidden = round(32 * width)
    return torch.nn.Sequential(torch.nn.Linear(40, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, num_classes))
"""


def test_a_network_of_ones_own_leaves_with_its_architecture_while_its_code_is_the_same(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_network_to_export.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    store = Store(tmp_path / "store")
    model = {"name": "own_network_to_export:build", "widths": [1]}
    sparse = {"arms": ["lth"], "sparsities": [0.5], "rewinds": [0]}
    run_sweep(store, model=model, dense={"epochs": 1}, match={"epochs": None}, sparse=sparse)
    row = row_of(store, arm="lth")
    folder = exported(store, row, tmp_path / "program")
    script = "import sys, load; print(load.load()); assert 'own_network_to_export' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)
    options = [str(store.root), row["key"], "--out", str(tmp_path / "out")]
    assert main(options) == 2
    error = capsys.readouterr().err
    assert "torch cannot export 'own_network_to_export:build' (ZeroDivisionError: division by zero)" in error
    assert error.endswith("; --format torch-prune can\n")
    exported(store, row, tmp_path / "pruned", "--format", "torch-prune")
    (tmp_path / "own_network_to_export.py").write_text(OWN_NETWORK.replace("ReLU", "Tanh"))
    assert main(options) == 2
    assert "whether 'own_network_to_export:build' is the code that was trained is not known" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_normalise_does_to_pixels_what_evaluation_does(store, kind):
    found = find_network(store, row_of(store, arm="lth")["key"])
    scale = DATASETS["cifar10"].scale()
    network = replace(found, scale=scale, model=replace(found.model, in_shape=(3, 32, 32)))
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    dataset = ArrayDataset(x, np.zeros(5), x, np.zeros(5), cifar.MEAN["cifar10"], cifar.STD["cifar10"])
    ((expected, _),) = dataset.splits("cpu")[1].batches(5)
    names = {"__file__": "load.py", "__name__": "load"}
    exec(snippet(network, kind), names)
    normalised = names["normalise"](torch.tensor(x) if kind == "safetensors" else x)
    assert str(normalised.dtype).endswith("float32")
    assert np.array_equal(np.asarray(normalised), expected.numpy())
