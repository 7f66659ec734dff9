"""Checkpoint actors and the searcher against a real Ray and a real store."""

import os
import signal
import time
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.tune.search import Searcher

from raylth.cluster import launch
from raylth.cluster.address import ClusterError
from raylth.cluster.failures import cause_of
from raylth.cluster.nodes.budget_meter import Meter
from raylth.cluster.scheduler.graph_searcher import GraphSearcher
from raylth.cluster.scheduler.loop import _Pulse
from raylth.cluster.slots import Shares
from raylth.cluster.worker.checkpoint_cache import CheckpointReader, start_checkpoint_actors
from raylth.cluster.worker.epoch_counter import EpochReporter
from raylth.cluster.worker.payload import Work
from raylth.common.signals import Asked
from raylth.config.resources import ResourcesConfig
from raylth.stages import Graph, Preempted, Stage, make_plan
from raylth.store import BrokenArtefact, Store
from tests.conftest import tiny_sweep

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
    actors = start_checkpoint_actors(str(store.root), 2)
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


def test_epochs_are_counted_on_through_the_death_of_the_board(cluster, store):
    """The first checkpoint actor is the board; one that starts again begins at 0, and the sweep's count does not."""
    (board,) = start_checkpoint_actors(str(store.root), 1)
    searcher, meter = SimpleNamespace(resources=ResourcesConfig()), Meter(None, None, store.root / "used.json")
    pulse = _Pulse(searcher, board, lambda *told: None, Asked(), meter)

    def count() -> int:
        pulse.asked_at = float("-inf")
        for _ in range(200):
            pulse._read_counter()
            time.sleep(0.05)
            if pulse.pending is None:
                return pulse.epochs
        raise TimeoutError

    chalk = EpochReporter(board)
    chalk(5)
    chalk.flush()
    assert count() == 5
    os.kill(ray.get(board.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
    time.sleep(0.5)
    chalk(2)
    chalk.flush()
    ray.get(board.hold.remote(KEYS[0], "weights", store.read(KEYS[0], "weights")))  # it is back
    assert count() == 7
    assert count() == 7


def test_a_broken_checkpoint_is_named_to_the_reader(cluster, store):
    path = next(store.folder(KEYS[2]).path.glob("weights*"))
    path.write_bytes(b"damaged")
    reader = CheckpointReader(start_checkpoint_actors(str(store.root), 1), store)
    with pytest.raises(BrokenArtefact, match=path.name) as caught:
        reader.load(KEYS[2], "weights")
    assert caught.value.key == KEYS[2]


def searcher_of(tmp_path, retries=1):
    stages = [Stage("dense", "a", {}, {}, {}), Stage("sparse", "b", {}, {"weights": "a"}, {})]
    return GraphSearcher(
        Graph(stages), Store(tmp_path), ResourcesConfig(retries=retries, dense={"gpus": "1/2"}, engine="eager")
    )


def ends(*outcomes):
    """What a trial reports of its stages."""
    return {"outcomes": [{"error": None, "broken": None, "computed": True, "seconds": 0.01, **end} for end in outcomes]}


OK = ends({"outcome": "done"})


def test_the_searcher_waits_for_parents_and_ends_with_the_graph(tmp_path):
    searcher = searcher_of(tmp_path)
    assert searcher.suggest("t1") == asdict(Work(["a"], 1, 0.5))
    assert searcher.suggest("t2") is None, "b waits for a, so no trial may be made"
    searcher.on_trial_complete(trial_id="t1", result=OK)
    assert searcher.suggest("t2") == asdict(Work(["b"], 1, 0.0))
    assert searcher.suggest("t3") is None
    searcher.on_trial_complete(trial_id="t2", result=OK)
    assert searcher.suggest("t3") == Searcher.FINISHED


def test_a_worker_that_dies_is_retried_and_then_given_up(tmp_path):
    searcher = searcher_of(tmp_path, retries=1)
    for trial in ("t1", "t2"):
        assert searcher.suggest(trial)["stages"] == ["a"]
        searcher.on_trial_complete(trial_id=trial, error=True)
    assert searcher.suggest("t3") == Searcher.FINISHED
    assert searcher.graph.errors == {"a": "its worker process died 2 times: unknown reason"}
    assert searcher.graph.states["b"] == "blocked"
    assert "restarted (1)" in searcher.notes[0]
    assert searcher.graph.incidents == {"crashed": 2}


def test_preemption_is_never_given_up_and_waits_longer_each_time(tmp_path, monkeypatch):
    searcher, now = searcher_of(tmp_path, retries=0), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for number, wait in enumerate([1, 2, 4, 8, 16, 32, 60, 60]):
        trial = f"t{number}"
        assert searcher.suggest(trial)["stages"] == ["a"]
        searcher.causes[trial] = "preempted", "notice"
        searcher.on_trial_complete(trial_id=trial, error=True)
        now[0] += wait - 0.01
        assert searcher.suggest("early") is None
        now[0] += 0.02
    assert searcher.suggest("last")["stages"] == ["a"]
    searcher.on_trial_complete(trial_id="last", result=OK)
    assert searcher.graph.incidents == {"preempted": 8}
    assert searcher.graph.states["a"] == "done"


def test_an_actor_that_tune_ends_while_it_starts_costs_the_stage_nothing(tmp_path, monkeypatch):
    searcher, now = searcher_of(tmp_path, retries=0), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for number in range(20):
        assert searcher.suggest(f"t{number}")["stages"] == ["a"]
        searcher.causes[f"t{number}"] = "not started", "ActorDiedError"
        searcher.on_trial_complete(trial_id=f"t{number}", error=True)
        assert searcher.suggest("at once") is None
        now[0] += 61
    assert not searcher.notes
    assert not searcher.graph.incidents
    assert searcher.suggest("last")["stages"] == ["a"]


def test_out_of_memory_gets_a_larger_share_until_there_is_none(tmp_path, monkeypatch):
    searcher, now = searcher_of(tmp_path, retries=0), [0.0]
    searcher.shares = Shares(ResourcesConfig(dense={"gpus": "1/3"}), searcher.store, [])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for trial, share in (("t1", 1 / 3), ("t2", 1 / 2), ("t3", 1.0)):
        assert searcher.suggest(trial)["gpus"] == share
        searcher.on_trial_complete(trial_id=trial, result=ends({"outcome": "out of memory", "error": "CUDA"}))
        now[0] += 100
    assert searcher.suggest("t4") == Searcher.FINISHED
    assert searcher.graph.errors == {"a": "out of memory 3 times, most recently with 1 CPU, 1 GPU: CUDA"}
    assert searcher.graph.incidents == {"out of memory": 3}
    assert "restarted with 1 CPU, 0.5 GPU in 1 s" in searcher.notes[0]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ray.exceptions.RayTaskError("step", "", Preempted("x")), "preempted"),
        (None, "crashed"),
        (ray.exceptions.OutOfMemoryError("x"), "out of memory"),
        (ray.exceptions.RayTaskError("step", "", MemoryError()), "out of memory"),
        (ray.exceptions.ActorDiedError(), "crashed"),
        (RuntimeError("The actor never ran - it was cancelled before it started running."), "not started"),
    ],
)
def test_the_cause_of_a_workers_end(error, cause):
    assert cause_of(error) == cause


def leaves(tmp_path, number=100):
    """A searcher over one dense stage and many arms that depend on it, the dense one done in 10 ms."""
    stages = [Stage("dense", "a", {}, {}, {})]
    stages += [Stage("sparse", f"s{n:03}", {}, {"weights": "a"}, {}) for n in range(number)]
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), ResourcesConfig(retries=1))
    searcher.suggest("dense")
    searcher.on_trial_complete(trial_id="dense", result=OK)
    return searcher


def test_short_stages_that_nothing_waits_for_come_in_batches(tmp_path):
    searcher = leaves(tmp_path)
    assert searcher.suggest("t0")["stages"] == ["s000"], "nobody knows yet how long an arm takes"
    searcher.on_trial_complete(trial_id="t0", result=OK)
    batch = searcher.suggest("t1")["stages"]
    assert len(batch) == 49, "half of what is left for one worker"
    assert len(searcher.suggest("t2")["stages"]) == 12, "a quarter of the rest for the second"
    searcher.seconds["sparse"] = 0.5
    assert len(searcher.suggest("t3")["stages"]) <= 4, "two seconds' worth"
    searcher.seconds["sparse"] = 60.0
    assert len(searcher.suggest("t4")["stages"]) == 1
    searcher.on_trial_complete(trial_id="t1", result=ends(*[{"outcome": "done"}] * 48, {"outcome": "failed", "error": "x"}))
    assert searcher.graph.states[batch[47]] == "done"
    assert searcher.graph.errors == {batch[48]: "x"}


def test_of_a_batch_whose_worker_died_only_the_stage_that_ran_is_to_blame(tmp_path):
    searcher = leaves(tmp_path)
    searcher.seconds["sparse"] = 0.1
    batch = searcher.suggest("t1")["stages"]
    assert len(batch) == 20
    for key in batch[:2]:
        searcher.store.publish(key, kind="sparse", tensors={}, metrics={})
    searcher.store.publish(batch[2], kind="sparse", tensors={}, metrics={"diverged": "in epoch 3"})
    searcher.on_trial_complete(trial_id="t1", error=True)
    assert [searcher.graph.states[key] for key in batch[:4]] == ["done", "done", "diverged", "waiting"]
    assert searcher.times == {(batch[3], "crashed"): 1}
    assert searcher.suggest("t2")["stages"] == [batch[3]], "alone, so that the next crash is surely its own"
    assert searcher.suggest("t3")["stages"][0] == batch[4]


def test_a_parent_that_two_stages_find_broken_is_set_aside_once(tmp_path):
    """The second report comes when the parent was made again: what is good stays."""
    searcher = leaves(tmp_path)
    searcher.store.publish("a", kind="dense", tensors={"weights": {"w": np.zeros(3)}}, metrics={})
    (weights,) = (searcher.store.folder("a").path).glob("weights*")
    trials = {trial: searcher.suggest(trial)["stages"] for trial in ("t1", "t2")}
    weights.write_bytes(b"broken")
    broken = {"outcome": "broken", "broken": "a", "error": "artefact a is broken"}
    searcher.on_trial_complete(trial_id="t1", result=ends(*[broken] * len(trials["t1"])))
    assert searcher.suggest("t3")["stages"] == ["a"]
    searcher.store.publish("a", kind="dense", tensors={"weights": {"w": np.zeros(3)}}, metrics={})
    searcher.on_trial_complete(trial_id="t3", result=OK)
    searcher.on_trial_complete(trial_id="t2", result=ends(*[broken] * len(trials["t2"])))
    assert searcher.store.verify("a") == {}
    assert (searcher.store.root / "broken").names() == ["a-0"]
    assert len([note for note in searcher.notes if "set aside" in note]) == 1
    assert searcher.suggest("t4")["stages"][0] == "s000", "both run again"


def test_a_batch_whose_worker_died_while_the_store_was_away_is_run_again(tmp_path, monkeypatch):
    searcher = leaves(tmp_path)
    searcher.seconds["sparse"] = 0.1
    batch = searcher.suggest("t1")["stages"]

    def away(self, key):
        raise OSError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "has", away)
        searcher.on_trial_complete(trial_id="t1", error=True)
    assert {searcher.graph.states[key] for key in batch} == {"waiting"}
    again = [key for trial in range(9) for key in searcher.suggest(f"again {trial}")["stages"]]
    assert set(batch) <= set(again)


def test_what_another_sweep_computes_is_polled_less_and_less_often_and_gives_no_time(tmp_path, monkeypatch):
    searcher, now = searcher_of(tmp_path), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    waits = []
    for number in range(20):
        assert searcher.suggest(f"t{number}")["stages"] == ["a"]
        searcher.on_trial_complete(trial_id=f"t{number}", result=ends({"outcome": "elsewhere"}))
        waits.append(searcher.delayed[0][0] - now[0])
        now[0] += 61
    assert waits[0] <= 2.0
    assert 30.0 <= waits[-1] <= 60.0
    searcher.suggest("last")
    searcher.on_trial_complete(trial_id="last", result=ends({"outcome": "done", "computed": False}))
    assert not searcher.seconds, "it took this sweep no time, and another one hours"


def test_a_store_that_does_not_answer_is_tried_again_ten_times(tmp_path, monkeypatch):
    searcher, now = searcher_of(tmp_path, retries=0), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for number in range(11):
        assert searcher.suggest(f"t{number}")["stages"] == ["a"]
        searcher.on_trial_complete(
            trial_id=f"t{number}", result=ends({"outcome": "storage unreachable", "error": "s3: no answer"})
        )
        now[0] += 61
    assert searcher.suggest("end") == Searcher.FINISHED
    assert searcher.graph.errors == {"a": "the store did not answer 11 times: s3: no answer"}
    assert searcher.graph.incidents == {"storage unreachable": 11}
    assert "restarted in 1 s (1): s3: no answer" in searcher.notes[0]


def test_while_everything_is_held_the_searcher_gives_the_driver_its_turns(tmp_path):
    searcher, turns = searcher_of(tmp_path), []
    searcher.on_turn = lambda: turns.append(1)
    searcher.suggest("t1")
    assert searcher.suggest("t2") is None
    assert len(turns) == 2


def test_a_share_that_no_single_node_has_is_refused(monkeypatch):
    nodes = [{"CPU": 64.0, "object_store_memory": 1e9}, {"CPU": 4.0, "GPU": 1.0, "object_store_memory": 5e5}]
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    launch.check_shares(ResourcesConfig.model_validate({"sparse": {"cpus": 4, "gpus": 1}, "dense": {"cpus": 64}}), nodes)
    with pytest.raises(ClusterError, match=r"resources\.sparse: no node has both 8 CPUs and 1 GPU"):
        launch.check_shares(ResourcesConfig.model_validate({"sparse": {"cpus": 8, "gpus": 1}}), nodes)
    team = ResourcesConfig.model_validate({"sparse": {"cpus": 40, "workers": 2}})
    with pytest.raises(ClusterError, match=r"resources\.sparse\.workers: 2 of 40 CPU asked for, but there is room for 1"):
        launch.check_shares(team, nodes)
    plan = make_plan(tiny_sweep(data={"name": "mnist1d", "num_train": 4000}))
    with pytest.raises(ClusterError, match=r"data\.name: mnist1d and one checkpoint take .* bytes\) are missing"):
        launch._check_object_stores(plan, Graph(plan.stages))


def test_a_stage_error_is_not_retried(tmp_path):
    searcher = searcher_of(tmp_path)
    searcher.suggest("t1")
    searcher.on_trial_complete(trial_id="t1", result=ends({"outcome": "failed", "error": "ValueError: no"}))
    assert searcher.suggest("t2") == Searcher.FINISHED
    assert searcher.graph.errors == {"a": "ValueError: no"}


def test_what_diverged_blocks_its_children_and_is_no_error(tmp_path):
    searcher = searcher_of(tmp_path)
    searcher.suggest("t1")
    searcher.on_trial_complete(trial_id="t1", result=ends({"outcome": "diverged", "error": "in epoch 3"}))
    assert searcher.suggest("t2") == Searcher.FINISHED
    assert searcher.graph.states == {"a": "diverged", "b": "blocked"}
