"""Leases between processes that share a store."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from raylth.store import Lease, Store, lease, process

KEY = "ab" + "0" * 62
HOLD = """
import sys, time
from raylth.store import Lease, Store
with Lease(Store(sys.argv[1]), sys.argv[2]) as lease:
    print(lease.held, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), KEY], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "True"
    yield process
    process.kill()
    process.communicate()


def test_one_at_a_time_and_free_again_afterwards(tmp_path):
    with Lease(Store(tmp_path), KEY) as first:
        assert first.held
        with Lease(Store(tmp_path), KEY) as second:
            assert not second.held
        with Lease(Store(tmp_path), KEY) as third:
            assert not third.held, "who did not get it does not give it back either"
    with Lease(Store(tmp_path), KEY) as later:
        assert later.held


def test_another_process_is_respected_until_it_is_dead(tmp_path, other):
    with Lease(Store(tmp_path), KEY) as mine:
        assert not mine.held
    other.kill()
    other.wait()
    with Lease(Store(tmp_path), KEY) as mine:
        assert mine.held, "the lease of a process of this machine that is dead is over at once"


def test_a_machine_that_is_not_heard_of_loses_it_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "DURATION", 0.3)
    path = tmp_path / "leases" / KEY[:2] / f"{KEY}.x.json"
    path.parent.mkdir(parents=True)
    elsewhere = {"until": time.time() + 0.2, "boot": "another machine", "pid": 1, "started": 0}
    path.write_text(json.dumps(elsewhere))
    with Lease(Store(tmp_path), KEY) as mine:
        assert not mine.held
    time.sleep(0.25)
    with Lease(Store(tmp_path), KEY) as mine:
        assert mine.held
        time.sleep(0.5)
        with Lease(Store(tmp_path), KEY) as second:
            assert not second.held, "a lease that is held is renewed"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"until": "soon"}'])
def test_a_claim_that_a_power_failure_cut_off_counts_as_none(tmp_path, content):
    path = tmp_path / "leases" / KEY[:2] / f"{KEY}.x.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with Lease(Store(tmp_path), KEY) as mine:
        assert mine.held
    assert not path.exists()
    assert not list(path.parent.iterdir())


def test_a_process_of_another_container_is_not_taken_for_a_dead_one(tmp_path):
    """Containers share the machine's boot and count their processes from 1."""
    claim = {"until": time.time() + 60, "boot": process._boot().split()[0] + " pid:[1]", "pid": 2**22 + 1, "started": 0}
    path = tmp_path / "leases" / KEY[:2] / f"{KEY}.x.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(claim))
    with Lease(Store(tmp_path), KEY) as mine:
        assert not mine.held


def test_a_process_that_another_user_does_not_see_has_not_ended(monkeypatch):
    """/proc with hidepid: psutil finds no such process, and the system says whose it is."""

    def hidden(pid):
        raise psutil.NoSuchProcess(pid)

    def refuse(pid, number):
        raise PermissionError

    this = process.this_process()
    assert not process.has_ended(this)
    monkeypatch.setattr(psutil, "Process", hidden)
    assert process.has_ended({**this, "pid": 2**22 + 1})
    monkeypatch.setattr(os, "kill", refuse)
    assert not process.has_ended(this)
