"""A sweep in processes of its own, to be harmed from outside, and the undisturbed results that it must end with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from raylth.cluster.worker import trace
from raylth.config.sweep import SweepConfig
from raylth.stages import Plan, make_plan, run_plan
from raylth.store import Store
from tests.conftest import tiny_sweep

DEADLINE = 120.0  # seconds that anything may take to come about


def fault_sweep():
    """Every kind of stage; its trainings last long enough to be hit in their middle."""
    return tiny_sweep(
        data={"num_train": 2000, "num_test": 200},
        model={"widths": [1]},
        dense={"epochs": 30},
        imp={"epochs_per_round": 10},
        match={"epochs": [30]},
        connect={"points": 3, "samples": 100},
        sparse={"arms": ["lth", "permuted"], "sparsities": [0.3, 0.5], "rewinds": [0, 5]},
        resources={"state_every": 1, "state_seconds": 0, "pack": "off"},
    )


FEW = ("sparse.arms=[lth]", "sparse.sparsities=[0.2]", "sparse.rewinds=[0]", "connect=null")  # network A alone


@pytest.fixture
def few(reference):
    """The plan of a sweep that is given `FEW`, whose dense network is the whole one's A, and the same store."""
    config = fault_sweep().model_dump(mode="json")
    config["sparse"] |= {"arms": ["lth"], "sparsities": [0.2], "rewinds": [0]}
    return make_plan(SweepConfig.model_validate(config | {"connect": None})), reference[1]


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The plan, and a store with what it gives when nothing happens."""
    plan, store = make_plan(fault_sweep()), Store(tmp_path_factory.mktemp("reference"))
    assert not run_plan(plan, store).errors
    return plan, store


def wait_until(condition: Callable[[], object], what: str) -> object:
    """Poll until `condition` gives something; fail with `what` when it does not."""
    deadline = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in {DEADLINE:g} s there was no {what}"
        time.sleep(0.002)
    return found


class Work:
    """What all workers did, from their trace."""

    def __init__(self, file: Path, plan: Plan) -> None:
        events = [json.loads(line) for line in file.read_text().splitlines()]
        self.began = Counter(event["key"] for event in events if event["event"] == "began")
        self.ended = Counter(event["key"] for event in events if event["event"] == "ended")
        trained: Counter[str] = Counter()
        self.resumed: Counter[str] = Counter()  # stage -> epochs that it had not to train again
        is_first: dict[str, bool] = {}
        for event in events:
            key = event["key"]
            if event["event"] == "epochs":
                (self.resumed if is_first[key] else trained)[key] += event["epochs"]
            is_first[key] = event["event"] == "began"
        self.again = {key: times - 1 for key, times in self.began.items() if times > 1}
        self.epochs_twice = {s.key: trained[s.key] - s.epochs for s in plan.stages if trained[s.key] > s.epochs}


class RunningSweep:
    """`python -m raylth.sweep` on a store of its own."""

    def __init__(self, folder: Path, *options: str, storage: str | None = None) -> None:
        self.trace = Path(os.environ[trace.VARIABLE])
        self.store = Store(storage or folder / "store")
        self.file = folder / "faults.yaml"
        self.file.write_text(yaml.safe_dump(fault_sweep().model_dump(mode="json", exclude_defaults=True)))
        self.command = [sys.executable, "-m", "raylth.sweep", str(self.file), f"storage={self.store.root}", *options]
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def workers(self, name: str = "ray::_Inner", under: int | None = None) -> list[psutil.Process]:
        """Return the sweep's Ray processes with that title (Tune calls its trials _Inner), or those below `under`."""
        found = []
        for process in psutil.Process(under or self.process.pid).children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith(name):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def num_epochs(self) -> int:
        """Return how many epochs all workers have trained."""
        return self.trace.read_text().count('"epochs": 1}') if self.trace.exists() else 0

    def work(self, plan: Plan) -> Work:
        """Return what the workers of all sweeps of this test did so far."""
        return Work(self.trace, plan)

    def finish(self) -> str:
        """Wait for the end; returns the output. The exit status must be 0."""
        output, _ = self.process.communicate(timeout=400)  # a bound on hanging: some machines are half as fast
        assert self.process.returncode == 0, output
        return output

    def stop(self) -> None:
        """Take whatever is left down with everything below it; once is enough."""
        if self.process.stdout.closed:
            return
        if self.process.poll() is None:
            below = psutil.Process(self.process.pid).children(recursive=True)
            os.kill(self.process.pid, signal.SIGKILL)
            for process in below:
                try:
                    process.kill()
                except psutil.Error:
                    continue
        self.process.communicate()


@pytest.fixture(autouse=True)
def traced(tmp_path, monkeypatch):
    """Every worker that a test starts writes down what it does."""
    monkeypatch.setenv(trace.VARIABLE, str(tmp_path / "trace.jsonl"))


@pytest.fixture
def start_sweep(tmp_path):
    """Start a sweep; it is taken down at the test's end."""
    started: list[RunningSweep] = []

    def start(*options: str, storage: str | None = None) -> RunningSweep:
        started.append(RunningSweep(tmp_path, *options, storage=storage))
        return started[-1]

    yield start
    for sweep in started:
        sweep.stop()


def assert_undisturbed(reference, store: Store) -> None:
    """Every artefact has the bytes and the numbers of the undisturbed run, and nothing half-done is left."""
    plan, expected = reference
    for stage in plan.stages:
        for key in stage.produces:
            for name in expected.files(key):
                np.testing.assert_array_equal(expected.read(key, name), store.read(key, name), err_msg=stage.name)
            first, second = (
                {k: v for k, v in s.metrics(key).items() if k not in ("seconds", "pack")} for s in (expected, store)
            )
            assert first == second, stage.name
    assert not (store.root / "states").files(), "no state is left of a finished training"
