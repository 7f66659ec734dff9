"""Pictures in folders, and the .beton files that are made of them."""

import pytest

from raylth.cli import data as command
from raylth.core.data import load_dataset
from tests.pictures import write_pictures

NUM_TRAIN, NUM_VAL = 45, 12


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_pictures(root, NUM_TRAIN, NUM_VAL)
    return root


@pytest.fixture(scope="session")
def converted(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("beton")
    assert command.main(["imagenet", str(folder), str(target), "--max-side", "128", "--workers", "2"]) == 0
    return target


def load(converted, resolution=32, **counts):
    counts = {"num_train": NUM_TRAIN, "num_test": NUM_VAL, **counts}
    return load_dataset("imagenet", root=str(converted), resolution=resolution, **counts)
