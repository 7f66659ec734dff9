"""A sweep that joins a cluster with a GPU that is none: what trials and tasks get of it, and that the bits are the same."""

import json
import os
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest

from raylth.stages import make_plan, run_plan
from raylth.store import Store
from tests.conftest import tiny_sweep

TRAININGS = ("dense", "imp", "sparse")
LINE = {"points": 3, "corrections": ["plain"], "samples": 60}

SWEEP = """
import sys
from ray.cluster_utils import Cluster
from raylth.cluster import launch
from raylth.cluster.address import Joining
from raylth.cluster.nodes.budget_meter import Meter
from raylth.stages import load_data, make_plan, scan
from raylth.store import Store
from tests.cluster.scheduler.test_fake_gpu import fake_sweep

launch.gpu_table = lambda: [("fake", 8 * 2**30)]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
plan, store = make_plan(fake_sweep("auto", "graph")), Store(sys.argv[1])
graph = scan(plan, store)
launch.run_on_ray(
    plan, graph, store, load_data(plan.config.data), errors=store.root / "errors",
    meter=Meter(None, None, store.root / "used.json"), joining=Joining(cluster.address),
    watch=lambda graph, epochs, notes: [print(note) for note in notes], imports=("tests.fake_gpus", "shares"),
)
cluster.shutdown()
print(sorted(set(graph.states.values())), graph.errors)
"""

SHARES = """
import json, os
from dataclasses import replace
from pathlib import Path
import ray
from raylth.stages import KINDS
def watched(kind):
    field = "compute" if kind.prepare is None else "prepare"
    function = getattr(kind, field)
    def noted(stage, context):
        where = ray.get_runtime_context()
        seen = {"kind": kind.name, "pid": os.getpid(), "task": where.get_actor_id() is None,
                "share": where.get_assigned_resources(), "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}
        with Path(os.environ["RAYLTH_TEST_SHARES"]).open("a") as file:
            file.write(json.dumps(seen) + "\\n")
        return function(stage, context)
    return replace(kind, **{field: noted})
for name in list(KINDS):
    KINDS[name] = watched(KINDS[name])
"""


def fake_sweep(gpus, engine):
    resources = {**{kind: {"gpus": gpus} for kind in TRAININGS}, "plane": {"gpus": 0.5 if gpus else 0}, "engine": engine}
    return tiny_sweep(
        sparse={"arms": ["lth", "permuted"], "sparsities": [0.5], "rewinds": [0]},
        match={"epochs": [4]},
        connect=LINE,
        analyses={"overlap": {}, "planes": [{"resolution": 2, "samples": 60}]},
        data={"num_train": 200, "num_test": 50},
        resources=resources,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The sweep: its store, what it reported, and what each stage saw of its share."""
    folder = tmp_path_factory.mktemp("fake")
    (folder / "shares.py").write_text(SHARES)
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",  # as for any cluster of cluster_utils, before ray is imported
        "RAYLTH_TEST_SHARES": str(folder / "shares.json"),
        "PYTHONPATH": os.pathsep.join([str(folder), os.getcwd(), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", SWEEP, str(folder / "store")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.splitlines()[-1:] == ["['done'] {}"], done.stdout + done.stderr
    seen = [json.loads(line) for line in (folder / "shares.json").read_text().splitlines()]
    return Store(folder / "store"), done.stdout, seen


def test_a_sweep_on_a_fake_gpu_tries_once_then_packs_and_ends_with_the_same_bits(ran, tmp_path):
    """The workers see to it that exactly the GPU that they were given is visible.

    Graphs are replayed on the CPU there, and the plain loop has the same bits.
    """
    store, output, _ = ran
    learned = [line for line in output.splitlines() if "GiB" in line]
    assert len(learned) == 1, "one network, one batch: tried once"
    assert "takes 1.0 GiB of GPU memory: 1 CPU, 0.166667 GPU for each of its kind" in learned[0]
    plain, plan = Store(tmp_path), make_plan(fake_sweep(0, "eager"))
    assert (store.root / "measured").files()
    assert not run_plan(plan, plain).errors
    for stage in plan.stages:
        if stage.epochs:
            assert (store.metrics(stage.key)["engine"], plain.metrics(stage.key)["engine"]) == ("graph", "eager")
        assert store.files(stage.key) == plain.files(stage.key)
        for name in plain.files(stage.key):
            np.testing.assert_array_equal(plain.read(stage.key, name), store.read(stage.key, name), err_msg=stage.name)


def test_on_a_cluster_that_is_joined_tasks_have_their_shares_in_rays_books(ran):
    """Trials are trainings alone; where a task needs what an idle one's worker holds, that is ended."""
    _, _, seen = ran
    assert {each["task"] for each in seen if each["kind"] in TRAININGS} == {False}
    measured = [each for each in seen if each["kind"] not in TRAININGS]
    assert {each["kind"] for each in measured} == {"match", "connect", "overlap", "plane"}
    for each in measured:
        share = {name: amount for name, amount in each["share"].items() if "_group_" not in name}
        on_gpu = each["kind"] == "plane"
        assert (each["task"], share.get("CPU"), share.get("GPU", 0)) == (True, 1, 0.5 * on_gpu), each
        assert each["gpus"] == ("0" if on_gpu else "")


def test_no_process_of_a_task_sees_other_gpus_than_it_began_with(ran):
    _, _, seen = ran
    by_process = defaultdict(set)
    for each in seen:
        if each["task"]:
            by_process[each["pid"]].add(each["gpus"])
    assert {len(gpus) for gpus in by_process.values()} == {1}
