"""A finished sweep that asks for everything: the quickstart's file, cut down to seconds."""

from pathlib import Path

import pytest

from raylth.config.load import read_sweep
from raylth.driver.run_record import Run
from raylth.stages import make_plan, result_rows, run_plan
from raylth.store import Store

QUICKSTART = Path(__file__).parents[2] / "sweeps/quickstart.yaml"
SMALL = [
    "data.num_train=400", "data.num_test=100", "dense.epochs=4", "imp.epochs_per_round=1", "seeds.replicates=2",
    "sparse.rewinds=[0, 2]", "sparse.sparsities=[0.5, 0.9]", "model.widths=[0.25, 0.5]", "connect.samples=100",
    "analyses.match_quality={samples: [30, 100], epochs: [1], line: {points: 3, samples: 100}}",
    "analyses.planes=[{resolution: 4, samples: 100}]", "analyses.overlap={own: true}",
]  # fmt: skip


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """The folder of the finished run, in a store of its own."""
    config = read_sweep(QUICKSTART, [*SMALL, f"storage={tmp_path_factory.mktemp('quickstart')}"])
    plan, store = make_plan(config), Store(config.storage)
    graph = run_plan(plan, store)
    assert not graph.errors
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    return run.folder
