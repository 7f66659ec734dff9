"""A finished sweep, whose networks are written elsewhere."""

import pytest

from raylth.stages import make_plan, result_rows, run_plan
from raylth.store import Store
from raylth.trackers import networks
from tests.conftest import tiny_sweep


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Plan, store and graph of a sweep."""
    config = tiny_sweep(sparse={"arms": ["lth", "naive"], "sparsities": [0.5]}, log={"evaluate_every": 2})
    plan, store = make_plan(config), Store(tmp_path_factory.mktemp("store"))
    graph = run_plan(plan, store)
    assert not graph.errors
    return plan, store, graph


@pytest.fixture(scope="session")
def trained(finished):
    """The networks of that sweep."""
    plan, store, graph = finished
    return networks(result_rows(plan, graph, store, "tiny-00000000"), graph)
