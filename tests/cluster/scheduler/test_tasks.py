"""Stages that train nothing are Ray tasks beside Tune's trials: what they get, when they start, what a lost one costs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from raylth.cluster.failures import OUT_OF_MEMORY
from raylth.cluster.launch import run_on_ray
from raylth.cluster.nodes.budget_meter import Meter
from raylth.cluster.scheduler.graph_searcher import GraphSearcher
from raylth.cluster.scheduler.places import Place, Places
from raylth.cluster.scheduler.tasks import StageTasks
from raylth.cluster.slots import Slot
from raylth.cluster.worker.checkpoint_cache import CheckpointReader, start_checkpoint_actors
from raylth.config.resources import ResourcesConfig
from raylth.stages import Graph, Stage, load_data, make_plan, run_plan, scan
from raylth.store import Store, locate
from tests.cluster.scheduler.test_shares import training
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


HARMS = """
import os, signal
from dataclasses import replace
from pathlib import Path
from raylth.stages import KINDS
once = Path({died!r})
plane = KINDS["plane"]
def deadly(stage, context):
    if not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return plane.compute(stage, context)
def wrong(stage, context):
    raise ValueError("no overlap today")
KINDS["plane"] = replace(plane, compute=deadly)
KINDS["overlap"] = replace(KINDS["overlap"], compute=wrong)
"""


@pytest.fixture(scope="module")
def harmed(tmp_path_factory):
    """A run in which the process of the first plane is killed, and overlaps fail; its graph, notes and errors."""
    folder = tmp_path_factory.mktemp("harmed")
    (folder / "harms.py").write_text(HARMS.format(died=str(folder / "died")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        graph, _, _, notes = run(folder, make_plan(tiny_sweep(**MEASURED)), patch, imports=("harms",))
    return graph, notes, folder / "errors"


def test_a_task_whose_process_dies_is_started_again(harmed):
    """Nothing else is lost, and it is reported once."""
    graph, notes, _ = harmed
    assert {graph.states[key] for key, stage in graph.stages.items() if stage.kind == "plane"} == {"done"}
    assert graph.incidents == {"crashed": 1}
    (note,) = [note for note in notes if "restarted" in note]
    assert note.startswith("plane(")
    assert "its worker process died; restarted (1)" in note


def test_a_stages_own_error_fails_it_at_once_and_its_traceback_is_kept(harmed):
    graph, _, errors = harmed
    assert set(graph.errors.values()) == {"ValueError: no overlap today"}
    failed = next(iter(graph.errors))
    assert "no overlap today" in (errors / f"{failed}.txt").read_text()
    assert {graph.states[key] for key in graph.stages if key not in graph.errors} == {"done"}


def stage(kind, key, parents=(), epochs=0):
    return Stage(kind, key, SimpleNamespace(), {f"p{n}": parent for n, parent in enumerate(parents)}, {}, epochs)


def tasks_of(tmp_path, stages, cpus=4, gpus=0.0, **resources):
    """Tasks without a Ray, which only note what they would submit."""
    machines = {"CPU": cpus, "GPU": gpus}
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), ResourcesConfig(engine="eager", **resources), machines=machines)
    tasks = StageTasks.__new__(StageTasks)
    tasks.searcher, tasks.running, tasks.places = searcher, {}, Places(is_local=True)
    tasks._submit = lambda stage, place: tasks.running.update({stage.key: (stage, place)})
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
    assert list(tasks.running) == ["pi0", "pi1", "line"], "the fourth core is the training's"
    del tasks.running["pi0"]
    tasks.places.give_back(tasks.places.places[0])
    tasks.submit()
    assert list(tasks.running) == ["pi1", "line", "pi2"], "what only measures is no part of that half"


@pytest.mark.parametrize(("kind", "seconds", "held"), [("match", 2.0, True), ("match", 0.0, False), ("connect", 2.0, False)])
def test_no_training_starts_while_what_arms_wait_for_waits_for_room(tmp_path, kind, seconds, held):
    """Tune would give it the worker that has just become idle, time and again; what only measures waits itself."""
    tasks = tasks_of(tmp_path, [training("s0")])
    since = time.monotonic() - seconds
    tasks.places.places.append(Place(kind, Slot(1, 0.0), {}, since=since))
    tasks.turn = lambda: None
    assert tasks.hold_back() is held
    assert (tasks.searcher._suggest("t1") is None) is held
    del tasks.places.places[:]
    assert not tasks.hold_back()


def test_a_match_is_next_where_machines_may_come_and_one_more_training_always_waits(tmp_path):
    """One more trial is suggested than there is room for, so that a machine comes: a match takes the room that one leaves."""
    trainings = [training(f"s{n}") for n in range(9)]
    tasks = tasks_of(tmp_path, [*trainings, stage("match", "pi"), stage("match", "pi2")], cpus=2)
    searcher, trials = tasks.searcher, iter(range(99))
    tasks.turn = lambda: None
    tasks.graph.take([tasks.graph.stages["pi"], tasks.graph.stages["pi2"]])
    for _ in range(5):
        searcher._suggest(f"t{next(trials)}")
    assert list(searcher.running) == ["t0", "t1", "t2"], "two run, one waits"
    tasks.graph.retry("pi")
    tasks.graph.retry("pi2")
    for ended in ("t0", "t1"):
        del searcher.running[ended]
        searcher._suggest(f"t{next(trials)}")
    assert list(tasks.running) == ["pi"]
    assert len(searcher.running) == 2, "one runs, one waits: the second match would be more than half of two cores"
    tasks.running.clear()
    tasks.places.give_back(tasks.places.places[0])
    searcher._suggest(f"t{next(trials)}")
    assert len(searcher.running) == 2, "the second match is next"
    del searcher.running["t2"]
    searcher._suggest(f"t{next(trials)}")
    assert list(tasks.running) == ["pi2"]


def test_a_task_for_which_no_machine_is_there_holds_no_training_back(tmp_path):
    stages = [training("s0"), training("s1"), stage("match", "pi")]
    tasks = tasks_of(tmp_path, stages, gpus=1.0, match={"gpus": 1})
    tasks.turn = lambda: None
    tasks.places = Places(is_local=False)
    tasks.places._make = lambda kind, slot: tasks.places.places.append(Place(kind, slot, {}, since=time.monotonic() - 9))
    tasks.searcher.see({"CPU": 4.0, "GPU": 0.0})
    assert tasks.searcher._suggest("t0") is not None, "the machine with the GPU is still to come"
    assert [place.kind for place in tasks.places.waiting()] == ["match"]
    tasks.searcher.see({"CPU": 4.0, "GPU": 1.0})
    assert tasks.searcher._suggest("t1") is None


def test_a_task_without_room_holds_back_no_task_of_another_kind(tmp_path):
    stages = [stage("plane", "plane"), stage("plane", "plane2"), stage("overlap", "overlap"), stage("ensemble", "e")]
    tasks = tasks_of(tmp_path, stages, plane={"cpus": 3})
    tasks.searcher.running["trial"] = [stage("sparse", "train", epochs=1)], Slot(2, 0.0)
    tasks.submit()
    assert list(tasks.running) == ["overlap", "e"]


def test_a_place_that_does_not_end_with_its_machine_is_given_up():
    """Ray would make it anew before the task that ends its process, and may have no room for that for ever."""
    places = Places(is_local=False)
    since = time.monotonic() - 60
    places.places.append(Place("line", Slot(1, 0.5), {}, state="left", since=since))
    places.looked_at = time.monotonic()
    assert places.held() == [("line", Slot(1, 0.5))]
    places.turn()
    assert places.held() == [], "trainings have its share again"


@pytest.fixture(scope="module")
def cluster():
    """A Ray that the tests below share; those above have one of their own each."""
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def places(cluster):
    made = Places(is_local=False)
    yield made
    made.close()


def test_a_task_is_given_references_and_reads_the_store_where_they_are_lost(cluster, tmp_path):
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


def test_out_of_memory_of_a_task_is_distinguished_from_a_crash(tmp_path):
    tasks = tasks_of(tmp_path, [stage("connect", "line")])
    tasks.submit()
    tasks.searcher.lost([tasks.graph.stages["line"]], OUT_OF_MEMORY, "OutOfMemoryError: killed")
    assert tasks.graph.incidents == {OUT_OF_MEMORY: 1}
    assert tasks.graph.states["line"] == "waiting"


def process():
    return os.getpid()


def placed(places, slot):
    """Wait until there is a place."""
    end = time.monotonic() + 30
    while (place := places.take("line", slot)) is None:
        assert time.monotonic() < end
        places.turn()
        time.sleep(0.01)
    return place


def test_a_place_is_kept_for_a_while_and_holds_its_share(places, monkeypatch):
    slot = Slot(2, 0.0)
    place = placed(places, slot)
    assert ray.get(ray.remote(process).options(**place.options).remote()) > 0
    assert "CPU" not in ray.available_resources(), "all cores are the place's"
    assert places.busy() == [slot]
    places.give_back(place)
    assert (places.busy(), places.held()) == ([], [("line", slot)])
    assert places.take("line", slot) is place, "the next task has it"
    places.give_back(place)
    places.turn()
    assert places.held(), "for some seconds"
    monkeypatch.setattr("raylth.cluster.scheduler.places.KEPT_SECONDS", 0.0)
    places.turn()
    assert places.held() == []
    free = ray.remote(num_cpus=1)(process)
    assert ray.get(free.remote(), timeout=30) > 0


def test_a_place_that_cannot_be_made_asks_for_an_idle_workers_share_once_a_second(places, monkeypatch):
    first = Slot(2, 0.0)
    used = placed(places, first)
    assert places.take("line", first) is None
    assert places.is_made()
    assert not places.is_short(), "a moment is no lack"
    monkeypatch.setattr("raylth.cluster.scheduler.places.SHORT_SECONDS", 0.1)
    time.sleep(0.15)
    assert places.is_short()
    assert not places.is_short(), "the one that was ended may be enough"
    time.sleep(0.15)
    assert places.is_short()
    places.give_back(used, is_sound=False)
    assert placed(places, first) is not used, "what another left is there for it"


LOST = """
import time
import ray
from ray.cluster_utils import Cluster
from raylth.cluster.scheduler.places import Place, Places
from raylth.cluster.slots import Slot
cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
places = Places(is_local=False)
def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        places.turn()
        time.sleep(0.1)
node = cluster.add_node(num_cpus=1)
wait_until(lambda: places.take("line", Slot(1, 0.0)))
cluster.remove_node(node)
wait_until(lambda: [place.kind for place in places.waiting()] == ["line"])
print(places.is_short())
cluster.add_node(num_cpus=1)
wait_until(lambda: places.waiting() == [])
(place,) = places.places
print(ray.get(ray.remote(lambda: 7).options(**place.options).remote()))
"""


def test_a_place_whose_machine_is_lost_waits_for_room_like_a_new_one():
    """Ray makes it anew where there is room, and an idle worker may hold that."""
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_SCHEDULER_EVENTS": "0",
    }  # nothing is printed but by the script
    ran = subprocess.run(
        [sys.executable, "-c", LOST], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.stdout.split() == ["True", "7"], ran.stdout + ran.stderr


def test_a_place_that_is_used_again_is_that_of_its_new_task(places):
    place = placed(places, Slot(1, 0.0))
    places.give_back(place)
    assert places.take("plane", Slot(1, 0.0)) is place
    assert places.held() == [("plane", Slot(1, 0.0))]


def test_one_with_another_share_takes_what_an_unused_place_holds(places):
    places.give_back(placed(places, Slot(2, 0.0)))
    assert placed(places, Slot(1, 0.0)) is not None
    assert [slot for _, slot in places.held()] == [Slot(1, 0.0)]


def test_the_process_of_a_place_with_a_gpu_ends_with_it(places):
    """Its memory of the GPU goes with it; on the CPU Ray keeps the process. So also on a Ray of the sweep's own."""
    places.is_local = True
    getpid = ray.remote(max_retries=0)(process)
    place = placed(places, Slot(1, 0.5))
    pid = ray.get(getpid.options(**place.options).remote())
    assert ray.get(getpid.options(**place.options).remote()) == pid
    places.give_back(place, is_sound=False)
    end = time.monotonic() + 30
    while places.held():
        assert time.monotonic() < end
        places.turn()
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    again = placed(places, Slot(1, 0.5))
    assert ray.get(getpid.options(**again.options).remote()) != pid
