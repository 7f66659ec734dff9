"""Batches as people have them, given to everything that takes batches."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from raylth.core.batches import inputs_of
from raylth.core.batchnorm import reset_bn_stats
from raylth.core.layerwise import reset_and_predict
from raylth.core.matching import match_activations
from raylth.core.matching.straight_through import match_straight_through
from raylth.core.permutation import derive_spec
from raylth.core.repair import repair, site_statistics

X = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(1))


def network(seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)]
    return nn.Sequential(*layers)


def moved(batches):
    """Everything that batches decide, as tensors."""
    a, b, middle = network(1), network(2), network(3)
    spec = derive_spec(a, X[:2])
    found = {f"perm {name}": perm for name, perm in match_activations(a, b, spec, batches).permutation.perms.items()}
    found["predicted"] = reset_and_predict(network(4), batches)
    reset_bn_stats(a, batches)
    ends = [site_statistics(each, batches) for each in (a, b)]
    repair(middle, ends[0], ends[1], 0.5, batches)
    for name, each in (("reset", a), ("repaired", middle)):
        found |= {f"{name} {key}": value.clone() for key, value in each.state_dict().items()}
    return found


class Wrapped(torch.utils.data.Dataset):
    """Samples with labels and a number, as some data sets give them."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index].numpy(), int(Y[index]), index


@pytest.mark.parametrize(
    "batches",
    [
        X.split(20),
        [(x, y) for x, y in zip(X.split(20), Y.split(20), strict=True)],
        [[x, y] for x, y in zip(X.split(20), Y.split(20), strict=True)],
        [x.numpy() for x in X.split(20)],
        [(x.double(), y) for x, y in zip(X.split(20), Y.split(20), strict=True)],
        DataLoader(TensorDataset(X, Y), batch_size=20),
        DataLoader(TensorDataset(X), batch_size=20),
        DataLoader(Wrapped(), batch_size=20),
    ],
    ids=["tensors", "tuples", "lists", "arrays", "doubles", "loader", "loader without labels", "loader with more"],
)
def test_batches_are_taken_as_they_are(batches):
    expected, found = moved(list(X.split(20))), moved(batches)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    "batches", [DataLoader(TensorDataset(X, Y), batch_size=20), zip(X.split(20), Y.split(20), strict=True)]
)
def test_learned_matching_takes_an_ordinary_loader(batches):
    a, b = network(1), network(2)
    spec = derive_spec(a, X[:2])
    pairs = list(zip(X.split(20), Y.split(20), strict=True))
    expected, found = (match_straight_through(a, b, spec, each, 0, epochs=1).permutation.perms for each in (pairs, batches))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("batches", "line"),
    [
        (X, r"batches: one tensor of shape \(60, 3, 8, 8\); give a list"),
        (X.numpy(), "batches: one tensor"),
        ((X, Y), r"batches: a batch of shape \(60,\)"),
        ([{"image": X, "label": Y}], "batches: a dict with the keys image, label; expected tensors"),
        ({"image": X}, "batches: a dict; expected"),
        ([("cat", X)], "batches: a tuple beginning with a str"),
        ([()], "batches: a tuple beginning with a tuple"),
        ([None], "batches: a NoneType"),
        (3, "batches: a int; expected"),
        ("images", "batches: a str; expected"),
        ([X[:, 0, 0, 0]], r"a batch of shape \(60,\)"),
        ([np.array(["a", "b"])], "batches: a ndarray"),
        ([], "no samples"),
    ],
)
def test_what_are_no_batches_is_one_line(batches, line):
    a, b = network(1), network(2)
    spec = derive_spec(a, X[:2])
    for call in (
        lambda: match_activations(a, b, spec, batches),
        lambda: reset_bn_stats(a, batches),
        lambda: site_statistics(a, batches),
        lambda: reset_and_predict(a, batches),
    ):
        with pytest.raises((TypeError, ValueError), match=line) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_labels_that_are_missing_or_of_another_kind_are_one_line():
    a, b = network(1), network(2)
    spec = derive_spec(a, X[:2])
    for batches, line in (
        (X.split(20), "a batch without labels"),
        ([(X, Y[:7])], r"labels of shape \(7,\), torch.int64, for 60 inputs"),
        ([(X, torch.eye(5)[Y])], r"labels of shape \(60, 5\), torch.float32"),
    ):
        with pytest.raises((TypeError, ValueError), match=line):
            match_straight_through(a, b, spec, batches, 0)


def test_inputs_follow_the_network():
    model = network(1).to(torch.float64)
    assert next(inputs_of([X], model)).dtype == torch.float64
    tokens = torch.randint(0, 9, (4, 7))
    assert next(inputs_of([tokens], model)).dtype == torch.int64, "whole numbers are left as they are"
