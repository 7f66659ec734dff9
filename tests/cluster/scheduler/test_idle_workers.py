"""Idle workers stay: starting one takes longer than many a stage."""

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
from ray.tune.utils.object_cache import _ObjectCache

from raylth.cluster.scheduler.idle_workers import LONGEST, IdleWorkers
from raylth.stages import make_plan
from tests.cluster.scheduler.test_tasks import run
from tests.conftest import tiny_sweep

RUNNING, PENDING = "RUNNING", "PENDING"


@dataclass(frozen=True)
class Trial:
    status: str
    placement_group_factory: str
    PENDING: ClassVar[str] = PENDING


class Controller:
    """What of Tune's controller is used: its cache of idle workers, and the trials that are not over."""

    def __init__(self):
        self._actor_cache, self.live = _ObjectCache(may_keep_one=True), []
        self._trial_to_actor, self._actor_manager = {}, SimpleNamespace(pending_actors=[])

    def get_live_trials(self):
        return self.live

    def idle(self, resources, worker):
        return self._actor_cache.cache_object(resources, worker)

    def ended(self):
        return list(self._actor_cache.flush_cached_objects())


def trial(status, resources):
    return Trial(status, resources)


@pytest.fixture
def now(monkeypatch):
    found = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: found[0])
    return found


def test_idle_workers_are_kept_for_a_while(now):
    controller, warm = Controller(), IdleWorkers()
    controller.live = [trial(RUNNING, "1 CPU")]
    warm.turn(controller)
    assert all(controller.idle("1 CPU", worker) for worker in ("a", "b", "c"))
    warm.turn(controller)
    now[0] += LONGEST - 1
    warm.turn(controller)
    assert controller.ended() == []
    now[0] += 2
    warm.turn(controller)
    assert controller.ended() == ["a", "b", "c"]


def test_idle_workers_make_room_for_a_trial_that_needs_what_they_hold(now):
    controller, warm = Controller(), IdleWorkers()
    controller.live = [trial(RUNNING, "1/3 GPU")]
    warm.turn(controller)
    assert all(controller.idle("1/3 GPU", worker) for worker in ("a", "b"))
    controller.live = [trial(RUNNING, "1/3 GPU"), trial(PENDING, "1/3 GPU")]
    warm.turn(controller)
    assert controller.ended() == [], "the trial takes one of them"
    controller.live = [trial(RUNNING, "1/3 GPU"), trial(PENDING, "1 GPU")]
    controller._trial_to_actor[controller.live[1]] = "starts"
    warm.turn(controller)
    assert controller.ended() == [], "the trial has what it needs"
    controller._actor_manager.pending_actors.append("starts")
    warm.turn(controller)
    controller._actor_cache.increase_max("1 GPU")  # as Tune does for a trial that waits
    assert controller.ended() == ["a", "b"]


def test_a_worker_that_was_idle_while_a_chain_ran_is_used_afterwards(tmp_path, monkeypatch):
    """One pair: while its pruning rounds run, one after another, a worker has nothing to do; then all train the arms."""
    resources, sparse = {"pack": "off"}, {"arms": ["lth", "naive"], "rewinds": [0, 1, 2]}
    config = tiny_sweep(seeds={"replicates": 1}, dense={"epochs": 200}, sparse=sparse, resources=resources)
    graph, _, events, _ = run(tmp_path, make_plan(config), monkeypatch)
    assert set(graph.states.values()) == {"done"}
    workers = [(graph.stages[event["key"]].kind == "sparse", event["pid"]) for event in events if event["event"] == "began"]
    before, after = ({pid for is_arm, pid in workers if is_arm == wanted} for wanted in (False, True))
    assert len(before) > 1, "both cores had work"
    assert before <= after
