"""Stages that train nothing are Ray tasks beside Tune's trials: what they get, when they start, what a lost one costs."""

import json
import os
import signal
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from raylth.cluster.failures import OUT_OF_MEMORY
from raylth.cluster.launch import run_on_ray
from raylth.cluster.nodes.budget_meter import Meter
from raylth.cluster.scheduler.graph_searcher import GraphSearcher
from raylth.cluster.scheduler.tasks import StageTasks
from raylth.cluster.slots import Slot
from raylth.cluster.worker.checkpoint_cache import CheckpointReader, start_checkpoint_actors
from raylth.config.resources import ResourcesConfig
from raylth.stages import Graph, Stage, load_data, make_plan, run_plan, scan
from raylth.store import Store, locate
from tests.conftest import tiny_sweep

LINE = {"points": 3, "corrections": ["plain"], "samples": 60}
MEASURED = {
    "connect": LINE,
    "match": {"epochs": [4]},
    "analyses": {"overlap": {}, "planes": [{"resolution": 2, "samples": 60}], "lines": [LINE]},
    "sparse": {"arms": ["lth", "permuted", "naive"], "sparsities": [0.5], "rewinds": [1]},
    "data": {"num_train": 200, "num_test": 50},
}


def run(tmp_path, plan, monkeypatch, imports=()):
    """Run a plan on a Ray of its own; returns its graph, its store and the trace of what the workers did."""
    monkeypatch.setenv("RAYLTH_TRACE", str(tmp_path / "trace"))
    store, notes = Store(tmp_path / "store"), []
    graph = scan(plan, store)
    meter = Meter(None, None, store.root / "used.json")
    run_on_ray(
        plan, graph, store, load_data(plan.config.data), errors=locate(tmp_path / "errors"),
        watch=lambda graph, epochs, new: notes.extend(new), meter=meter, imports=imports,
    )  # fmt: skip
    trace = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    return graph, store, trace, notes


def test_trials_are_trainings_and_all_else_is_tasks_with_the_same_bits(tmp_path, monkeypatch):
    plan = make_plan(tiny_sweep(**MEASURED))
    graph, store, trace, _ = run(tmp_path, plan, monkeypatch)
    assert set(graph.states.values()) == {"done"}
    processes = defaultdict(set)
    for event in trace:
        processes[event["pid"]].add(graph.stages[event["key"]].epochs > 0)
    assert all(len(kinds) == 1 for kinds in processes.values()), "no process that trains measures, too"
    alone = Store(tmp_path / "alone")
    assert not run_plan(plan, alone).errors
    for stage in plan.stages:
        for name in alone.files(stage.key):
            np.testing.assert_array_equal(alone.read(stage.key, name), store.read(stage.key, name), err_msg=stage.name)
        one, other = ({**each.metrics(stage.key), "seconds": 0, "pack": 0} for each in (alone, store))
        assert one == other, stage.name


def test_a_task_whose_process_dies_is_started_again(tmp_path, monkeypatch):
    """SIGKILL in the middle of the first plane; nothing else is lost, and a person is told once."""
    (tmp_path / "deadly.py").write_text(
        "import os, signal\nfrom dataclasses import replace\nfrom pathlib import Path\nfrom raylth.stages import KINDS\n"
        f"once = Path({str(tmp_path / 'died')!r})\n"
        "plane = KINDS['plane']\n"
        "def deadly(stage, context):\n"
        "    if not once.exists():\n        once.touch()\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plane.compute(stage, context)\n"
        "KINDS['plane'] = replace(plane, compute=deadly)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    graph, _, _, notes = run(tmp_path, make_plan(tiny_sweep(**MEASURED)), monkeypatch, imports=("deadly",))
    assert set(graph.states.values()) == {"done"}
    assert graph.incidents == {"crashed": 1}
    (told,) = [note for note in notes if "started again" in note]
    assert told.startswith("plane(")
    assert "its worker process died; started again (1)" in told


def test_a_stages_own_error_fails_it_at_once_and_its_traceback_is_kept(tmp_path, monkeypatch):
    (tmp_path / "wrong.py").write_text(
        "from dataclasses import replace\nfrom raylth.stages import KINDS\n"
        "def wrong(stage, context):\n    raise ValueError('no overlap today')\n"
        "KINDS['overlap'] = replace(KINDS['overlap'], compute=wrong)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    graph, _, _, _ = run(tmp_path, make_plan(tiny_sweep(**MEASURED)), monkeypatch, imports=("wrong",))
    assert set(graph.errors.values()) == {"ValueError: no overlap today"}
    failed = next(iter(graph.errors))
    assert "no overlap today" in (tmp_path / f"errors/{failed}.txt").read_text()
    assert {graph.states[key] for key in graph.stages if key not in graph.errors} == {"done"}


def stage(kind, key, parents=(), epochs=0):
    return Stage(kind, key, SimpleNamespace(), {f"p{n}": parent for n, parent in enumerate(parents)}, {}, epochs)


def tasks_of(tmp_path, stages, cpus=4, gpus=0.0, **resources):
    """Tasks without a Ray, which only note what they would submit."""
    machines = {"CPU": cpus, "GPU": gpus}
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), ResourcesConfig(engine="eager", **resources), machines=machines)
    tasks = StageTasks.__new__(StageTasks)
    tasks.searcher, tasks.running = searcher, {}
    tasks._submit = lambda stage, slot: tasks.running.update({stage.key: (stage, slot)})
    searcher.tasks = tasks
    return tasks


def test_what_measures_waits_while_a_training_could_start(tmp_path):
    """A training that has no room keeps its place: tasks take only what it could not use."""
    stages = [stage("sparse", "train", epochs=3), *(stage("connect", f"line{n}") for n in range(4))]
    tasks = tasks_of(tmp_path, stages, sparse={"cpus": 3})
    tasks.submit()
    assert list(tasks.running) == ["line0"], "of 4 cores the training needs 3"
    tasks.graph.next_ready(trial=True)
    tasks.searcher.running["trial"] = [tasks.graph.stages["train"]], Slot(3, 0.0)
    tasks.submit()
    assert list(tasks.running) == ["line0"], "no room beside both"
    del tasks.searcher.running["trial"]
    tasks.submit()
    assert list(tasks.running) == ["line0", "line1", "line2", "line3"]


def test_what_arms_wait_for_comes_first_and_takes_half_of_the_cores(tmp_path):
    stages = [*(stage("match", f"pi{n}") for n in range(4)), stage("sparse", "train", epochs=3), stage("connect", "line")]
    tasks = tasks_of(tmp_path, stages)
    assert tasks.come_first()
    tasks.submit()
    assert list(tasks.running) == ["pi0", "pi1"]


def test_what_has_a_share_of_a_gpu_stays_a_trial(tmp_path):
    """Its worker has the device open; Ray would end a task's process after each."""
    stages = [stage("plane", "plane"), stage("connect", "line")]
    tasks = tasks_of(tmp_path, stages, gpus=1.0, plane={"gpus": 1})
    tasks.graph.split(tasks.is_trial)
    tasks.submit()
    assert list(tasks.running) == ["line"]
    assert tasks.graph.next_ready(trial=True).key == "plane"


@pytest.fixture
def cluster():
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def test_a_task_is_given_references_and_goes_to_the_store_where_they_lead_nowhere(cluster, tmp_path):
    store, key = Store(tmp_path), "ab" + "0" * 62
    store.publish(key, kind="dense", tensors={"weights": {"w": np.arange(5, dtype=np.float32)}}, metrics={})
    actors = start_checkpoint_actors(str(store.root), 1)
    reader = CheckpointReader(actors, store)
    reader.references = {key: actors[0].references.remote(key)}
    ray.wait(list(reader.references.values()))
    reader._actor = lambda key: pytest.fail("it has a reference")
    np.testing.assert_array_equal(reader.load(key, "weights")["w"], np.arange(5))
    del reader._actor
    os.kill(ray.get(actors[0].__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)  # its objects die with it
    np.testing.assert_array_equal(reader.load(key, "weights")["w"], np.arange(5))
    unknown = actors[0].references.remote("cd" + "0" * 62)
    assert ray.get(unknown) == {}, "what cannot be read has none"


def test_out_of_memory_of_a_task_is_told_from_a_crash(tmp_path):
    tasks = tasks_of(tmp_path, [stage("connect", "line")])
    tasks.submit()
    tasks.searcher.lost([tasks.graph.stages["line"]], OUT_OF_MEMORY, "OutOfMemoryError: killed")
    assert tasks.graph.incidents == {OUT_OF_MEMORY: 1}
    assert tasks.graph.states["line"] == "waiting"
