"""Several workers for one network: where they run, what their end means, and what a sweep file may ask for."""

from dataclasses import asdict

import pytest
import ray
import torch
from pydantic import ValidationError

from raylth.cluster import failures
from raylth.cluster.scheduler.graph_searcher import GraphSearcher
from raylth.cluster.slots import Slot, room, slot_of
from raylth.cluster.worker.data_parallel import TeamLost, _cause, num_workers
from raylth.cluster.worker.payload import Work
from raylth.config.resources import ResourcesConfig, TrainingShare
from raylth.config.sweep import SweepConfig
from raylth.stages import Graph, Preempted, make_plan
from raylth.store import BrokenArtefact, Store
from tests.cluster.scheduler.test_shares import a_match, training
from tests.cluster.worker.test_checkpoint_cache import ends
from tests.conftest import tiny_sweep

NODES = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 9.0, "GPU": 2.0}, {"CPU": 64.0}]


@pytest.mark.parametrize(("cpus", "gpus", "expected"), [(4, 1.0, 4 + 2), (8, 1.0, 2 + 1), (8, 0.0, 2 + 1 + 8), (65, 0.0, 0)])
def test_room_is_counted_machine_by_machine(cpus, gpus, expected):
    assert room(NODES, cpus, gpus) == expected


@pytest.mark.parametrize(
    ("asked", "fewest", "expected"),
    [(4, 4, 4), (6, 1, 6), (8, 8, 8), (8, 2, 6), (8, 7, 8)],  # of 6; the last waits for machines
)
def test_fewer_workers_start_where_that_is_allowed_and_there_is_room_for_them(asked, fewest, expected):
    assert num_workers(NODES, Work([], 4, 1.0, asked, fewest)) == expected


@pytest.mark.parametrize(
    ("share", "slot"),
    [
        ({"gpus": 4, "cpus": 8}, Slot(8, 1.0, 4)),
        ({"gpus": 4, "workers": 4}, Slot(1, 1.0, 4)),
        ({"workers": 2}, Slot(1, 0.0, 2)),
        ({"gpus": "1/3"}, Slot(1, 1 / 3, 1)),
        ({"gpus": "auto"}, Slot(1, 1.0, 1)),
        ({"gpus": 1, "workers": 1}, Slot(1, 1.0, 1)),
    ],
)
def test_gpus_or_workers_say_how_many_train_together(share, slot):
    assert slot_of(TrainingShare.model_validate(share)) == slot


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"resources": {"dense": {"gpus": 2.5}}}, "2.5 is neither a share of one GPU nor a number of whole ones"),
        ({"resources": {"dense": {"gpus": 2, "workers": 3}}}, "workers: 3 with gpus: 2"),
        ({"resources": {"dense": {"gpus": "1/2", "workers": 2}}}, "each worker has its own GPU, or none has"),
        ({"resources": {"dense": {"gpus": 2, "workers": 1}}}, "workers: 1 with gpus: 2: needs a worker for each GPU"),
        ({"resources": {"dense": {"gpus": "auto", "workers": 2}}}, "workers: 2 with gpus: auto"),
        ({"resources": {"dense": {"workers": 2, "min_workers": 3}}}, "min_workers: 3 of 2 workers"),
        ({"resources": {"match": {"gpus": 2}}}, "2 is not between 0 and 1"),
        ({"resources": {"match": {"workers": 2}}}, "Extra inputs are not permitted"),
        ({"sparse": {"unsynced_workers": 1}}, "sparse.unsynced_workers: 1 worker sees whole batches: set it to 0"),
        ({"sparse": {"unsynced_workers": 2}}, "sparse.unsynced_workers: 2, and resources.sparse has 1 workers"),
        (
            {"sparse": {"unsynced_workers": 2}, "resources": {"sparse": {"workers": 2, "min_workers": 1}}},
            "resources.sparse.min_workers: sparse.unsynced_workers fixes their number",
        ),
    ],
)
def test_impossible_settings_are_refused(settings, line):
    plain = tiny_sweep().model_dump(exclude_unset=True)
    for room_, values in settings.items():
        plain[room_] = {**plain.get(room_, {}), **values}
    with pytest.raises(ValidationError, match=line.replace(".", r"\.")):
        SweepConfig.model_validate(plain)


def test_how_many_train_a_network_is_no_part_of_its_key_unless_batch_norm_differs():
    def keys(**changes):
        return {stage.key for stage in make_plan(tiny_sweep(**changes)).stages}

    two = {"resources": {"sparse": {"workers": 2}}}
    assert keys() == keys(**two)
    arms = {"arms": ["lth"], "sparsities": [0.5], "rewinds": [0]}
    assert keys(sparse=arms) != keys(sparse={**arms, "unsynced_workers": 2}, **two)


def test_no_more_teams_are_started_than_there_is_room_for(tmp_path):
    stages = [training(f"s{number}") for number in range(4)] + [a_match("m")]
    resources = ResourcesConfig.model_validate({"sparse": {"gpus": 2, "cpus": 2, "min_workers": 1}, "pack": 8})
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), resources, [("H200", 2**37)] * 4, {"CPU": 16.0, "GPU": 4.0})
    first, second, third = (searcher.suggest(f"t{number}") for number in range(3))
    for number, found in enumerate((first, second)):
        assert found == asdict(Work([f"s{number}"], 2, 1.0, 2, 1))
    assert third["stages"] == ["m"], "the other teams wait"
    assert searcher.has_team()
    assert searcher.suggest("t3") is None
    searcher.on_trial_complete("t0", ends({"outcome": failures.CRASHED, "error": "worker 1: it died"}))
    assert "its worker process died; restarted (1): worker 1: it died" in searcher.notes[-1]


def test_the_cause_of_a_teams_end_is_found_among_its_workers_errors():
    from ray.train import ControllerError, WorkerGroupError

    gone = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer")
    died = ray.exceptions.ActorDiedError()

    def cause(**found):
        return _cause(WorkerGroupError("", {int(rank[1:]): error for rank, error in found.items()}))

    lost = cause(w0=gone, w1=died)
    assert isinstance(lost, TeamLost)
    assert (lost.cause, str(lost).startswith("worker 1: ")) == (failures.CRASHED, True)
    stopped = cause(w0=gone, w1=Preempted("asked to stop after 3 epochs"))
    assert (stopped.cause, str(stopped)) == (failures.PREEMPTED, "worker 1: asked to stop after 3 epochs")
    assert cause(w0=ray.exceptions.OutOfMemoryError("memory"), w1=gone).cause == failures.OUT_OF_MEMORY
    broken = BrokenArtefact("k", "its bytes have changed")
    assert cause(w0=broken, w1=gone) is broken, "its own error is the stage's"
    hung = type("WorkerHealthCheckTimeoutError", (RuntimeError,), {"__module__": "ray.train.v2._internal.exceptions"})()
    assert cause(w0=hung, w1=gone).cause == failures.CRASHED
    assert cause(w0=gone).cause == failures.CRASHED, "the other's end was not seen yet"
    full = torch.distributed.DistBackendError("NCCL error: ncclUnhandledCudaError: Cuda failure 2 'out of memory'")
    assert cause(w0=hung, w1=full) is full, "the others hang because of it, and its class is that of another's end"
    assert _cause(ControllerError(RuntimeError("no"))).cause == failures.CRASHED
