"""Checkpoint actors and the searcher against a real Ray and a real store."""

import os
import signal
import time

import numpy as np
import pytest
import ray
from ray.tune.search import Searcher

from raylth.cluster.checkpoints import CheckpointReader, start_checkpoint_actors
from raylth.cluster.searcher import GraphSearcher
from raylth.config import ResourcesConfig
from raylth.stages import Graph, Stage
from raylth.store import BrokenArtefact, Store

KEYS = [f"{i:02x}" + "0" * 62 for i in range(4)]


@pytest.fixture(scope="module")
def cluster():
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path)
    for number, key in enumerate(KEYS):
        arrays = {"w": np.full(500_000, number, dtype=np.float32)}
        store.publish(key, kind="dense", tensors={"weights": arrays}, metrics={})
    return store


def test_checkpoints_are_held_read_without_a_copy_and_refilled_after_a_crash(cluster, store):
    actors = start_checkpoint_actors(store.root, 2)
    reader = CheckpointReader(actors, store)
    reader.hand_over("dense", KEYS[1])
    for number, key in enumerate(KEYS):
        array = reader.load(key, "weights")["w"]
        assert array[0] == number
        assert not array.flags.writeable, "a view of the object store is read-only"
    held = ray.get([actor.__ray_call__.remote(lambda self: (os.getpid(), len(self.refs))) for actor in actors])
    assert sum(number for _, number in held) == len(KEYS)
    for pid, _ in held:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    for number, key in enumerate(KEYS):
        assert reader.load(key, "weights")["w"][-1] == number, "nothing is lost when an actor dies"


def test_a_broken_checkpoint_is_named_to_the_reader(cluster, store):
    path = next(store.folder(KEYS[2]).glob("weights*"))
    path.write_bytes(b"damaged")
    reader = CheckpointReader(start_checkpoint_actors(store.root, 1), store)
    with pytest.raises(BrokenArtefact, match=path.name) as caught:
        reader.load(KEYS[2], "weights")
    assert caught.value.key == KEYS[2]


def searcher_of(tmp_path, retries=1):
    stages = [Stage("dense", "a", {}, {}, {}), Stage("sparse", "b", {}, {"weights": "a"}, {})]
    return GraphSearcher(Graph(stages), Store(tmp_path), ResourcesConfig(retries=retries, dense={"gpus": "1/2"}))


OK = {"error": None, "broken": None}


def test_the_searcher_waits_for_parents_and_ends_with_the_graph(tmp_path):
    searcher = searcher_of(tmp_path)
    assert searcher.suggest("t1") == {"stage": "a", "cpus": 1, "gpus": 0.5}
    assert searcher.suggest("t2") is None, "b waits for a, so no trial may be made"
    searcher.on_trial_complete(trial_id="t1", result=OK)
    assert searcher.suggest("t2") == {"stage": "b", "cpus": 1, "gpus": 0.0}
    assert searcher.suggest("t3") is None
    searcher.on_trial_complete(trial_id="t2", result=OK)
    assert searcher.suggest("t3") == Searcher.FINISHED


def test_a_worker_that_dies_is_retried_and_then_given_up(tmp_path):
    searcher = searcher_of(tmp_path, retries=1)
    for trial in ("t1", "t2"):
        assert searcher.suggest(trial)["stage"] == "a"
        searcher.on_trial_complete(trial_id=trial, error=True)
    assert searcher.suggest("t3") == Searcher.FINISHED
    assert searcher.graph.errors == {"a": "its worker process died 2 times"}
    assert searcher.graph.states["b"] == "blocked"
    assert "started again (1)" in searcher.notes[0]


def test_a_stage_error_is_not_retried(tmp_path):
    searcher = searcher_of(tmp_path)
    searcher.suggest("t1")
    searcher.on_trial_complete(trial_id="t1", result={"error": "ValueError: no", "broken": None})
    assert searcher.suggest("t2") == Searcher.FINISHED
    assert searcher.graph.errors == {"a": "ValueError: no"}
