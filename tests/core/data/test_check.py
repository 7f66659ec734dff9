"""What a data set of one's own may be, and the one line for what it may not: before anything is trained."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raylth.core.data import DATASETS, ArrayDataset, DataError, DatasetInfo, MissingData, load_dataset
from raylth.core.data.check import called, checked

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 3, 8, 6)).astype(np.float32), RNG.integers(0, 4, 30)


def info(**changes):
    facts = {
        "in_shape": (3, 8, 6), "num_classes": 4, "num_train": 20, "num_test": 10, "augment": "none", "from_files": False,
        "load": lambda **_: None,
    }  # fmt: skip
    return DatasetInfo(**{**facts, **changes})


def own(x=X, y=Y, **changes):
    fields = {"train_x": x[:20], "train_y": y[:20], "test_x": x[20:], "test_y": y[20:]}
    return ArrayDataset(**{**fields, **changes})


def test_what_is_as_announced_is_left_as_it_is():
    data = own()
    found = checked(data, info(), "own")
    for name in ("train_x", "test_x"):
        assert np.shares_memory(getattr(found, name), getattr(data, name)), "not even copied"
    assert found.fingerprint() == own(y=Y.astype(np.int64)).fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"train_x": X[:20].tolist()},
        {"train_x": torch.tensor(X[:20], requires_grad=True)},
        {"train_x": [torch.tensor(x) for x in X[:20]]},
        {"train_x": X[:20].astype(np.float64)},
        {"train_x": X[:20].astype(">f4")},
        {"train_x": np.ascontiguousarray(np.moveaxis(X[:20], 1, -1))},  # channels last
        {"train_y": Y[:20].astype(np.int32), "test_y": Y[20:].astype(np.uint64)},
        {"train_y": Y[:20].astype(np.float32)},
        {"train_y": Y[:20, None]},
        {"train_y": Y[:20].tolist(), "test_y": tuple(Y[20:].tolist())},
        {"train_y": torch.tensor(Y[:20])},
        {"train_y": np.array(Y[:20].tolist(), dtype=object)},
        {"train_y": pd.Series(Y[:20], index=range(100, 120))},
    ],
)
def test_what_loses_nothing_is_converted(changes):
    found = checked(own(**changes), info(), "own")
    assert found.fingerprint() == checked(own(), info(), "own").fingerprint()
    assert (found.train_x.dtype, found.train_y.dtype) == (np.float32, np.int64)
    assert [split.y.dtype for split in found.splits("cpu")] == [torch.int64] * 2


def test_numbers_that_are_bytes_and_images_of_one_channel():
    grey = RNG.integers(0, 256, (30, 8, 6))
    found = checked(own(grey), info(in_shape=(1, 8, 6), dtype="uint8"), "own")
    assert (found.train_x.shape, found.train_x.dtype) == ((20, 1, 8, 6), np.uint8)
    np.testing.assert_array_equal(found.test_x[:, 0], grey[20:])
    assert checked(own(grey.astype(np.uint8)), info(in_shape=(1, 8, 6)), "own").train_x.dtype == np.float32


class Lazy:
    """What reads its samples when they are wanted."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        raise ZeroDivisionError(f"no sample {index}")


def changed(array, place, value):
    array = array.astype(float) if isinstance(value, float) else array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train_y": Y[:20] + 1}, "train_y has labels from 1 to 4 .*, and its 4 classes are 0 to 3; subtract 1"),
        ({"test_y": changed(Y[20:], 3, -1)}, r"test_y has labels from -1 to 3 \(label 3 is -1\)"),
        ({"train_y": changed(Y[:20], 5, 9)}, r"\(label 5 is 9\), and its 4 classes are 0 to 3"),
        ({"train_y": np.eye(4)[Y[:20]]}, r"train_y has the shape \(20, 4\), .* \(one-hot\? argmax"),
        ({"train_y": changed(Y[:20], 2, 1.7)}, "label 2 is 1.7; whole numbers from 0 to 3"),
        ({"train_y": changed(Y[:20], 2, float("nan"))}, "label 2 is nan"),
        ({"train_y": [str(y) for y in Y[:20]]}, "train_y is of dtype <U1; an array of numbers"),
        ({"train_y": None}, "train_y is a NoneType; an array of numbers"),
        ({"train_y": np.ma.masked_equal(Y[:20], Y[0])}, "masked entries"),
        ({"train_y": Y[:17]}, "train_x has 20 samples and train_y 17 labels"),
        ({"train_x": X[:17], "train_y": Y[:17]}, "train split has 17 samples, .* says num_train=20"),
        ({"test_x": X, "test_y": Y}, "test split has 30 samples, .* says num_test=10"),
        ({"train_x": X[:20, :2]}, r"train_x has the shape \(20, 2, 8, 6\), .* would be \(N, 3, 8, 6\)"),
        ({"train_x": X[:20].transpose(0, 1, 3, 2)}, r"shape \(20, 3, 6, 8\)"),
        ({"train_x": X[:20].reshape(20, -1)}, r"shape \(20, 144\)"),
        ({"train_x": [X[0], X[1, :1]]}, "train_x is a list that is no array"),
        ({"train_x": changed(X[:20], (7, 0, 0, 0), float("inf"))}, "train_x: sample 7 is not finite"),
        ({"test_x": changed(X[20:], (2, 1, 3, 4), float("nan"))}, "test_x: sample 2 is not finite"),
        ({"train_x": changed(X[:20], (4, 0, 0, 0), 1e300)}, "sample 4 is not finite .*as float32"),
        ({"train_x": X[:20].astype(complex)}, "of dtype complex128"),
        ({"train_x": Lazy()}, "train_x is a Lazy that is no array: no sample 0"),
        ({"train_y": np.array([0, "cat"] * 10, dtype=object)}, "of dtype <U"),
        ({"train_x": iter(X[:20])}, "train_x is a .*iterator"),
        ({"train_x": torch.tensor(X[:20]).to_sparse()}, "train_x is a Tensor that is no array"),
        ({"mean": (1.0, 2.0), "std": (1.0, 1.0)}, "a number for each of the 3 channels"),
        ({"mean": (1.0, 2.0, 3.0)}, "give both or none"),
        ({"mean": (1.0, 2.0, 3.0), "std": (1.0, 0.0, 1.0)}, "deviations above 0"),
    ],
)
def test_what_it_may_not_be_is_one_line(changes, line):
    with pytest.raises(DataError, match=line) as caught:
        checked(own(**changes), info(), "own")
    assert str(caught.value).startswith("data.name: own: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("x", [X, X * 100, X.astype(np.int64) - 1, (X * 1e4).astype(np.int64)])
def test_announced_bytes_that_are_none(x):
    with pytest.raises(DataError, match="says uint8: whole numbers 0 to 255"):
        checked(own(x), info(dtype="uint8"), "own")


@pytest.mark.parametrize(
    "returned", [None, 3, (X, Y), {"train": X}, ArrayDataset, torch.utils.data.TensorDataset(torch.tensor(X))]
)
def test_what_is_no_data_set_is_one_line(returned):
    with pytest.raises(DataError, match=r"its load\(\) returned .*, not an ArrayDataset"):
        checked(returned, info(), "own")


@given(
    st.sampled_from(["train_x", "train_y", "test_x", "test_y", "mean", "std"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
        lambda values: (
            st.lists(values, max_size=4) | st.tuples(values, values) | st.dictionaries(st.text(max_size=2), values)
        ),
        max_leaves=12,
    ),
)
def test_whatever_stands_in_the_place_of_an_array_is_one_line_or_right(field, value):
    """Values of every type at every field: what passes can be put on a device, all else is a DataError of one line."""
    try:
        found = checked(own(**{field: value}), info(), "own")
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    train, test = found.splits("cpu")
    assert (len(train), len(test)) == (20, 10)
    assert all(torch.isfinite(next(split.batches(20))[0]).all() for split in (train, test))


def test_load_is_called_with_what_it_takes():
    settings = {"root": "here", "layout": "torchvision", "download": False, "resolution": None}

    def strict(root, *, layout="x"):
        return root, layout

    def old(folder):
        return folder

    def broken(**_):
        raise KeyError("label\ncolumn")

    def missing(**_):
        return open("/nowhere/at/all")

    def leaves(**_):
        raise SystemExit(3)

    assert called(lambda: 1, info(), "own", **settings) == 1
    assert called(strict, info(), "own", **settings) == ("here", "torchvision")
    for function, kind, line in (
        (old, DataError, r"its old\(\) asks for 'folder'; available by name: root, layout, download, resolution"),
        (broken, DataError, r"its broken\(\) failed: KeyError: 'label"),
        (missing, MissingData, "No such file or directory: '/nowhere/at/all'"),
        (leaves, DataError, "failed: SystemExit: 3"),
    ):
        with pytest.raises(kind, match=line) as caught:
            called(function, info(), "own", **settings)
        assert "\n" not in str(caught.value)

    def load():
        return own()

    with pytest.raises(DataError, match="takes no root, and its DatasetInfo says that it is read from files"):
        called(load, info(load=load, from_files=True), "own", **settings)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"in_shape": (32, 32, 3)}, r"images are \(channels, height, width\): \(3, 32, 32\)"),
        ({"in_shape": (28, 28, 1)}, r"\(1, 28, 28\)"),
        ({"in_shape": 8}, "in_shape is 8"),
        ({"in_shape": ()}, "in_shape is"),
        ({"in_shape": (3, 0, 8)}, "at least 1"),
        ({"in_shape": (3.5,)}, "whole numbers"),
        ({"num_classes": 1}, "num_classes is 1, and must be at least 2"),
        ({"num_train": "all"}, "whole numbers"),
        ({"num_test": 0}, "num_test is 0"),
        ({"augment": "flip"}, "augment is 'flip', and must be one of none, flip_crop, resized_crop"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"load": own()}, "load is .* must be a function"),
    ],
)
def test_a_wrong_announcement_is_refused_where_it_is_made(changes, line):
    with pytest.raises(ValueError, match=re.compile(f"DatasetInfo: .*{line}", re.DOTALL)):
        info(**changes)
    assert info(in_shape=[np.int64(3), 8, 6]).in_shape == (3, 8, 6)


def test_data_in_files_may_be_fewer_only_when_a_number_is_asked_for(monkeypatch):
    few = info(from_files=True, num_train=200, num_test=100, load=lambda root: own())
    monkeypatch.setitem(DATASETS._entries, "few", few)
    with pytest.raises(
        DataError, match=r"^data.num_train: few: its train split has 20 samples in data.root, and the whole set"
    ):
        load_dataset("few", root="x")
    with pytest.raises(DataError, match=r"^data.num_test: .* has 10 samples .* set it to 10 if these are meant"):
        load_dataset("few", root="x", num_train=20)
    with pytest.raises(DataError, match=r"^data.num_train: 21 asked for"):
        load_dataset("few", root="x", num_train=21, num_test=5)
    assert len(load_dataset("few", root="x", num_train=20, num_test=5).test_y) == 5
    monkeypatch.setitem(DATASETS._entries, "few", info(num_train=200, load=lambda **_: own()))
    with pytest.raises(DataError, match=r"^data.name: few: its train split has 20 samples, and its DatasetInfo says"):
        load_dataset("few", num_train=20)


def test_how_data_are_normalised_is_part_of_what_they_are():
    one, other = (checked(own(mean=mean, std=[1, 1, 1]), info(), "own") for mean in ([0, 0, 0], torch.ones(3)))
    assert one.fingerprint() != other.fingerprint()
    assert other.mean == (1.0, 1.0, 1.0)
