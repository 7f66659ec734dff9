"""Fixtures that several test modules use: a sweep that runs in seconds, and the matrix of networks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raylth.config.sweep import SweepConfig
from tests.buckets import bucket_servers, place  # noqa: F401  # fixtures

# A sweep that a test starts has a Ray of its own, whatever cluster another test's process has just left on this machine.
os.environ["RAY_ADDRESS"] = "local"

# The environment of a Ray that runs one stage at a time: every worker process takes seconds to import torch.
ONE_CPU = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 1}'}

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Begun first, so that no file of minutes is left for the end; those with a Ray alternate with those that keep a core busy.
LONGEST = (
    "cluster/test_sweep.py", "core/data/test_streamed.py", "cluster/test_imagenet.py", "core/test_repair.py",
    "cluster/scheduler/test_out_of_memory.py", "core/training/test_packing.py", "cluster/test_ray_private.py",
    "config/test_fuzz.py", "test_wheel.py", "core/training/test_data_parallel.py", "cluster/search/test_search.py",
    "core/permutation/test_zoo.py", "core/models/test_imported.py", "core/matching/test_weight.py",
    "stages/test_same_data.py", "core/pruning/test_compact.py", "cluster/scheduler/test_fake_gpu.py", "export/test_export.py",
    "cluster/scheduler/test_tasks.py", "test_docs.py", "report/test_notebooks.py", "core/permutation/test_attention.py",
    "test_extending.py", "serve/test_app.py",
)  # fmt: skip

NETWORKS = {  # every network of the package, small enough for a test
    "mlp": {"name": "mlp", "width": 0.25, "num_classes": 10, "in_shape": (40,)},
    "resnet20": {"name": "resnet20", "width": 0.5, "num_classes": 10, "in_shape": (3, 16, 16)},
    "vgg11": {"name": "vgg11", "width": 0.25, "num_classes": 10, "in_shape": (3, 32, 32)},
    "vgg11-64px": {"name": "vgg11", "width": 0.125, "num_classes": 10, "in_shape": (3, 64, 64)},  # flatten of 2 x 2
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files for `--no-loadscope-reorder`; tests of a file stay in their order."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """A command that a test runs in this process chooses a Ray, and leaves that in variables for whatever comes next."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=list(NETWORKS))
def network_settings(request: pytest.FixtureRequest) -> dict:
    return NETWORKS[request.param]


def tiny_sweep(**changes: object) -> SweepConfig:
    """A sweep of every stage and every arm that trains for seconds; keyword `section={...}` changes a section."""
    settings: dict = {
        "name": "tiny",
        "seeds": {"replicates": 1},
        "data": {"name": "mnist1d", "num_train": 512, "num_test": 200},
        "model": {"name": "mlp", "widths": [0.25]},
        "dense": {"epochs": 4, "lr": 0.08},
        "imp": {"epochs_per_round": 1},
        "match": {"epochs": [2, 4]},
        "sparse": {
            "arms": ["lth", "naive", "permuted", "random", "random_permutation"],
            "sparsities": [0.3, 0.5],
            "rewinds": [0, 1],
        },
    }
    for key, value in changes.items():
        settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
    return SweepConfig.model_validate(settings)
