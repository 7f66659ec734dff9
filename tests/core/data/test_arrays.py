"""Data sets that are arrays already: files of numpy, and data sets of torchvision's and Hugging Face's kind."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import FakeData, FashionMNIST

from raylth.common.registry import UnknownName
from raylth.config.load import BadSweep, read_sweep
from raylth.core.data import ARRAYS, DATASETS, DataError, load_dataset, wrapped
from raylth.driver.run_record import Run
from raylth.export.stored_network import find_network
from raylth.stages import make_plan, result_rows, run_plan
from raylth.store import Store
from tests.conftest import tiny_sweep
from tests.fashion import write_fashion

ROOT = Path(__file__).resolve().parents[3]
TINY = {
    "match": {"epochs": [1]},
    "dense": {"epochs": 1, "lr": 0.05},
    "sparse": {"arms": ["naive"], "rewinds": [0], "sparsities": [0.5]},
}
NAMES = ("train_x", "train_y", "test_x", "test_y")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    DATASETS._found.clear()


def arrays(shape, dtype="float32", seed=0, classes=3):
    """Return 300 training and 60 test samples that a network can tell apart."""
    rng = np.random.default_rng(seed)
    found = {}
    for split, count in (("train", 300), ("test", 60)):
        y = np.arange(count) % classes
        x = rng.normal(size=(count, *shape)) + y.reshape(-1, *[1] * len(shape)) * 3
        found |= {f"{split}_x": np.clip(x * 20 + 90, 0, 255).astype(dtype) if dtype == "uint8" else x.astype(dtype)}
        found |= {f"{split}_y": y}
    return found


@pytest.mark.parametrize("names", [NAMES, ("x_train", "y_train", "x_test", "y_test")])
@pytest.mark.parametrize(
    ("shape", "dtype", "in_shape"),
    [
        ((40,), "float32", (40,)),
        ((2, 20), "float64", (2, 20)),
        ((40,), "int16", (40,)),
        ((8, 8), "uint8", (1, 8, 8)),
        ((8, 6, 3), "uint8", (3, 8, 6)),
        ((3, 8, 6), "uint8", (3, 8, 6)),
        ((8, 8, 3), "float32", (3, 8, 8)),
    ],
)
def test_a_file_of_arrays_is_a_data_set(names, shape, dtype, in_shape):
    found = arrays(shape, dtype)
    np.savez("own.npz", **dict(zip(names, found.values(), strict=True)))
    info, dataset = DATASETS["own.npz"], load_dataset("own.npz")
    assert (info.in_shape, info.num_classes, info.num_train, info.num_test) == (in_shape, 3, 300, 60)
    train, test = dataset.splits("cpu")
    assert len(train) == 300
    x = torch.cat([x for x, _ in test.batches(25)])
    assert x.dtype == torch.float32
    expected = found["test_x"].astype(np.float64)
    if dtype == "uint8":  # by channel, over the training split
        last = found["train_x"] if shape == (8, 6, 3) else np.moveaxis(found["train_x"].reshape(300, *in_shape), 1, -1)
        flat = last.reshape(-1, in_shape[0]).astype(np.float64)
        mean, std = flat.mean(0), flat.std(0)
        channels_last = expected if shape == (8, 6, 3) else np.moveaxis(expected.reshape(60, *in_shape), 1, -1)
        expected = np.moveaxis((channels_last - mean) / std, -1, 1)
    elif len(shape) == 3:
        expected = np.moveaxis(expected, -1, 1)
    labels = torch.cat([y for _, y in test.batches(25)])
    found_pairs = {(row.tobytes(), int(y)) for row, y in zip(rounded(x.double().numpy()), labels, strict=True)}
    assert found_pairs == {(row.tobytes(), int(y)) for row, y in zip(rounded(expected), found["test_y"], strict=True)}


def rounded(samples):
    """Rows that are alike but for rounding."""
    return np.round(samples.reshape(len(samples), -1), 2).astype(np.float32) + 0.0


def without(name):
    return {key: value for key, value in arrays((4,)).items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("test_y"), r"has the arrays train_x, train_y, test_x; expected are train_x, train_y, test_x, test_y \(or"),
        ({}, "has the arrays of no name"),
        ({**arrays((4,)), "test_x": np.zeros((60, 5))}, r"samples of the shapes \(4,\) and \(5,\)"),
        ({**arrays((4,)), "test_x": np.zeros((60, 4), np.uint8)}, "train_x and test_x are float32 and uint8"),
        (arrays((8, 8, 4), "uint8"), r"images have the shape \(8, 8, 4\)"),
        ({**arrays((4,)), "train_x": np.zeros(300)}, r"train_x is float64 of shape \(300,\); numbers with 2 axes"),
        ({**arrays((4,)), "train_y": np.array(["a"] * 300)}, "train_y is <U1 of shape"),
        ({**arrays((4,)), "train_x": np.array([{}] * 300)}, "holds Python objects"),
        ({**arrays((4,)), "train_x": np.zeros((0, 4))}, r"train_x is float64 of shape \(0, 4\)"),
        ({**arrays((4,)), "train_y": np.zeros(300, int), "test_y": np.zeros(60, int)}, "num_classes is 1"),
        ({**arrays((4,)), "train_y": np.full(300, 0.5)}, "train_y has the label 0.5; whole numbers from 0"),
        ({**arrays((4,)), "train_y": np.full(300, np.nan)}, "train_y has the label nan; whole numbers from 0"),
        ({**arrays((4,)), "test_y": np.full(60, np.inf)}, "test_y has the label inf; whole numbers from 0"),
        ({**arrays((4,)), "test_y": np.full(60, -1)}, "test_y has the label -1; whole numbers from 0"),
        ({**arrays((4,)), "train_y": np.zeros(299, int)}, "train_x has 300 samples and train_y 299 labels"),
        ({**arrays((4,)), "train_y": np.zeros((300, 3))}, r"train_y has the shape \(300, 3\); .*one-hot rows, argmax\(1\)"),
        ({**arrays((4,)), "test_y": np.full(60, 3_000_000_000)}, r"labels go to 3000000000 in 360 samples; .*return_inverse"),
        (b"no zip file", "cannot be read: |holds Python objects"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_is_no_data_set_is_one_line(tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / "own.npz").write_bytes(content)
    elif content is not None:
        np.savez("own.npz", **content)
    with pytest.raises(UnknownName, match=rf"^the file own.npz: .*({message})") as caught:
        DATASETS["own.npz"]
    assert "\n" not in str(caught.value)
    (tmp_path / "own.yaml").write_text("name: own\ndata: {arrays: own.npz}\nmodel: {name: mlp}\n")
    with pytest.raises(BadSweep, match=r"own.yaml:2: data.arrays: the file own.npz: ") as refused:
        read_sweep(tmp_path / "own.yaml")
    assert "\n" not in str(refused.value)


def test_samples_are_checked_as_those_of_any_data_set():
    np.savez("own.npz", **{**arrays((4,)), "test_x": np.full((60, 4), np.nan)})
    with pytest.raises(DataError, match=r"nan|finite"):
        load_dataset("own.npz")


def test_a_column_of_labels_is_read_as_keras_has_it():
    found = arrays((4,))
    np.savez("own.npz", **{name: array[:, None] if name.endswith("_y") else array for name, array in found.items()})
    train, _ = load_dataset("own.npz").splits("cpu")
    assert sorted(train.y.tolist()) == sorted(found["train_y"].tolist())


def keys(name):
    sweep = tiny_sweep(**TINY, data={"name": name, "num_train": None, "num_test": None})
    return [stage.key for stage in make_plan(sweep).stages]


def test_a_key_has_the_content_and_not_the_place(tmp_path):
    np.savez("own.npz", **arrays((40,)))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.npz").write_bytes((tmp_path / "own.npz").read_bytes())
    first = keys("own.npz")
    assert keys("elsewhere/other.npz") == keys(str(tmp_path / "own.npz")) == first
    np.savez("own.npz", **arrays((40,), seed=1))
    assert not set(keys("own.npz")) & set(first)


def test_a_changed_file_is_trained_anew_in_the_same_store():
    for seed in (0, 1):
        np.savez("own.npz", **arrays((40,), seed=seed))
        plan = make_plan(tiny_sweep(**TINY, data={"name": "own.npz", "num_train": None, "num_test": None}))
        assert {stage.settings.data.name for stage in plan.stages} == {ARRAYS}
        done = []
        graph = run_plan(plan, Store("store"), done.append)
        assert not graph.errors
        assert {stage.key for stage in done} >= {stage.key for stage in plan.stages if stage.kind == "dense"}


def test_a_file_that_changes_after_planning_is_refused():
    np.savez("own.npz", **arrays((40,)))
    info = DATASETS["own.npz"]
    np.savez("own.npz", **arrays((40,), seed=1))
    with pytest.raises(DataError, match=r"own.npz has changed since the sweep was planned"):
        info.load()


def test_an_export_normalises_as_in_training_or_not_at_all():
    np.savez("own.npz", **arrays((8, 8), "uint8"))
    config = tiny_sweep(**TINY, storage="store", data={"name": "own.npz", "num_train": None, "num_test": None})
    plan, store = make_plan(config), Store("store")
    graph = run_plan(plan, store)
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    key = next(stage.key for stage in plan.stages if stage.kind == "sparse")
    assert find_network(store, key).scale == DATASETS["own.npz"].scale()
    np.savez("own.npz", **arrays((8, 8), "uint8", seed=1))
    with pytest.raises(ValueError, match=r"own\.npz is not the file on which it was trained"):
        find_network(store, key)


def test_a_path_is_spelled_in_one_way_with_its_variables_filled_in(tmp_path, monkeypatch):
    np.savez("own.npz", **arrays((40,)))
    monkeypatch.setenv("WHERE", str(tmp_path))
    (tmp_path / "own.yaml").write_text("name: own\ndata: {arrays: $WHERE/own.npz}\nmodel: {name: mlp}\n")
    assert read_sweep("own.yaml").data.name == "own.npz"
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("WHERE", str(tmp_path / ".." / tmp_path.name))
    assert read_sweep(tmp_path / "own.yaml").data.name == f"{tmp_path.name}/own.npz"
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert read_sweep(tmp_path / "own.yaml").data.name == str(tmp_path / "own.npz"), "one run, however it is spelled"


def test_torchvisions_data_sets_are_wrapped():
    train, test = (FakeData(size, (3, 8, 6), num_classes=4, random_offset=size) for size in (30, 12))
    info = wrapped(train, test, augment="flip_crop")
    assert (info.in_shape, info.num_train, info.num_test, info.augment) == ((3, 8, 6), 30, 12, "flip_crop")
    dataset = info.load()
    for index in (0, 29):
        image, label = train[index]
        assert np.array_equal(dataset.train_x[index], np.asarray(image).transpose(2, 0, 1))
        assert dataset.train_y[index] == int(label)
    assert dataset.mean == pytest.approx(dataset.train_x.mean((0, 2, 3)))
    assert dataset.std == pytest.approx(dataset.train_x.std((0, 2, 3)))
    assert info.scale().mean == dataset.mean


def test_mappings_are_wrapped_as_the_hub_names_them():
    images = [Image.fromarray(np.full((5, 7), value, np.uint8)) for value in range(8)]
    rows = [{"idx": index, "image": image, "label": index % 2} for index, image in enumerate(images)]
    info = wrapped(rows[:6], rows[6:])
    assert info.in_shape == (1, 5, 7)
    assert info.load().test_x[:, 0, 0, 0].tolist() == [6, 7]
    values = torch.arange(8.0).repeat(4, 1).T.bfloat16().requires_grad_()
    tensors = [(row, torch.tensor(index % 2)) for index, row in enumerate(values)]
    info = wrapped(tensors[:6], tensors[6:])
    assert (info.in_shape, info.dtype) == ((4,), "float32")
    assert info.load().mean == ()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"picture": 1, "label": 0}], r"train\[0\] has picture, label; expected are img or image, and label"),
        ([3], r"train\[0\] is a int; a pair"),
        ([(np.zeros(3), "cat")], r"train\[0\] has the label 'cat'; a whole number"),
        ([(np.zeros(3), 0), (np.zeros(4), 1)], r"train: samples have the shapes \(3,\) and \(4,\)"),
        ([(np.zeros((4, 4, 3)), 0), (np.zeros((4, 4)), 1)], r"shapes \(4, 4, 3\) and \(4, 4\): give all images one mode"),
        ([(np.zeros(3), 0), (np.zeros(3, np.uint8), 1)], "train: samples are float64 and uint8: give all of them one type"),
        ([(np.zeros(3), 0), (np.zeros(3), -2)], "train_y has the label -2; whole numbers from 0"),
        ([], "train: it has no sample"),
        ([(Image.new("RGBA", (4, 4)), 0)], r"train\[0\] is an image of mode RGBA; RGB or L is expected"),
        ([(Image.new("P", (4, 4)), 0)], r"train\[0\] is an image of mode P"),
        ([({"a": 1}, 0)], r"train\[0\] is a dict"),
        ([(np.zeros(3, np.uint8), 0)], "train_x and test_x are uint8 and float64: give both as uint8, or neither"),
    ],
)
def test_samples_that_cannot_be_wrapped_are_one_line(samples, message):
    with pytest.raises(DataError, match=message) as caught:
        wrapped(samples, [(np.zeros(3), 0)])
    assert "\n" not in str(caught.value)


def test_the_pages_example_reads_fashion_mnist(tmp_path, monkeypatch):
    write_fashion(tmp_path / "fashion")
    page = (ROOT / "docs" / "guides" / "networks.md").read_text()
    (code,) = re.findall(r"```python\n(# fashion\.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "fashion.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        info = DATASETS["fashion:data"]
        assert (info.in_shape, info.num_classes, info.num_train, info.num_test) == ((1, 28, 28), 10, 40, 20)
        expected = FashionMNIST("fashion", train=True).data.numpy()
        assert np.array_equal(info.load().train_x[:, 0], expected)
    finally:
        sys.modules.pop("fashion", None)
