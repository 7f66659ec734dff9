"""`sbatch clusters/slurm.sbatch` on a Slurm of two nodes: nodes that die, a notice of the end, and nothing left behind."""

import json
import os
import sys
import time

import pytest
import yaml

from raylth.cluster.worker import trace
from raylth.stages import make_plan, run_plan
from raylth.store import Store
from tests.clouds.machines import can_be_made
from tests.clouds.slurm import PROGRAMS, ROOT, Slurm
from tests.conftest import tiny_sweep
from tests.faults.conftest import Work, assert_undisturbed, wait_until

MISSING = None if os.environ.get("CI") else can_be_made(*PROGRAMS)  # CI is never without
pytestmark = [pytest.mark.skipif(MISSING is not None, reason=str(MISSING)), pytest.mark.timeout(600)]
SMALL = ("--cpus-per-task=1", "--mem=2500M", "--time=10")  # of a node; the rest is as in the file
RAY = ("raylet", "gcs_server", "ray::", "raylth")


def long_sweep(epochs: int = 80):
    """Trainings that last long enough to be hit in their middle, and the stages that need them."""
    return tiny_sweep(
        data={"num_train": 2000, "num_test": 200},
        model={"widths": [1]},
        dense={"epochs": epochs},
        imp={"epochs_per_round": 10},
        match={"epochs": [epochs]},
        sparse={"arms": ["lth", "permuted"], "sparsities": [0.3], "rewinds": [0, 5]},
        resources={"state_every": 1, "state_seconds": 0, "pack": "off"},
    )


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    made = Slurm(tmp_path_factory.mktemp("slurm"), 2)
    (made.folder / "clusters").symlink_to(ROOT / "clusters")
    (made.folder / ".venv").symlink_to(sys.prefix)
    yield made
    made.stop()


class Job:
    """A sweep that was submitted as a user submits it."""

    def __init__(self, slurm: Slurm, name: str, *options: str, sweep=None, settings: tuple[str, ...] = ()) -> None:
        self.slurm, self.store, self.trace = slurm, Store(slurm.folder / name), slurm.folder / f"{name}.jsonl"
        file, config = slurm.folder / f"{name}.yaml", (sweep or long_sweep()).model_dump(mode="json", exclude_defaults=True)
        file.write_text(yaml.safe_dump(config))
        slurm.environment[trace.VARIABLE] = str(self.trace)
        words = ["clusters/slurm.sbatch", file.name, f"storage={self.store.root}", *settings]
        self.number = slurm.call("sbatch", "--parsable", *SMALL, *options, *words).strip()

    @property
    def output(self) -> str:
        file = self.slurm.folder / f"raylth-{self.number}.log"
        return file.read_text() if file.exists() else ""

    def shown(self) -> dict[str, str]:
        return self.slurm.job(self.number)

    def events(self, event: str) -> list[dict]:
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return [found for line in lines if (found := json.loads(line))["event"] == event]

    def num_epochs(self) -> int:
        return sum(found["epochs"] == 1 for found in self.events("epochs"))

    def trains_on(self, more: int = 5) -> None:
        """Wait until so many more epochs are trained."""
        before = self.num_epochs()
        self.wait(lambda: self.num_epochs() >= before + more, f"{more} more epochs")

    def wait(self, condition, what: str) -> None:
        """Wait for a condition; fail with the job's output when it does not come about, or the job has ended badly."""

        def come_about():
            assert self.shown()["JobState"] not in ("FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"), self.output
            time.sleep(0.2)
            return condition()

        try:
            wait_until(come_about, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.shown()}\n{self.output}") from error

    def wait_for_state(self, state: str) -> None:
        self.wait(lambda: self.shown()["JobState"] == state, f"job that is {state}")

    def wait_for_restart(self) -> None:
        self.wait(lambda: self.shown()["Restarts"] == "1", "restart")


def rays(slurm: Slurm, index: int) -> list[str]:
    """Return the processes of Ray and of sweeps on a node."""
    return [command for command in slurm.commands(index) if any(name in command for name in RAY)]


def assert_nothing_is_left(slurm: Slurm, index: int) -> None:
    """Nothing runs any more once Slurm takes a node's jobs for ended; without cgroups it would not see to that itself."""
    ended = lambda: not any("slurmstepd" in command for command in slurm.commands(index))  # noqa: E731
    wait_until(lambda: time.sleep(0.2) or ended(), "end of all steps")
    assert not rays(slurm, index)
    assert not [name for name in slurm.names(index, "/tmp") if name.startswith("raylth")]


def test_a_sweep_survives_the_end_of_either_node_with_equal_bits(slurm, tmp_path):
    plan, reference = make_plan(long_sweep()), Store(tmp_path)
    job = Job(slurm, "survives")
    job.trains_on()
    job.wait(lambda: any("ray::" in command for command in rays(slurm, 1)), "work on the second node")
    slurm.kill(1)
    job.wait(lambda: job.shown()["NodeList"] == "node0", "job without the second node")
    job.trains_on()
    assert job.shown()["Restarts"] == "0", "the sweep continues on the first node"
    slurm.start(1)
    slurm.kill(0)
    job.wait_for_restart()
    slurm.start(0)
    assert not run_plan(plan, reference).errors  # while the nodes come up
    job.wait_for_state("COMPLETED")
    assert "start 2 of job" in job.output
    assert_undisturbed((plan, reference), job.store)
    work = Work(job.trace, plan)
    assert sum(work.again.values()) <= 2 * 2, "at most one per worker and death"
    assert max(work.epochs_twice.values(), default=0) <= 5, "its states are saved after each epoch"
    for index in range(2):
        assert_nothing_is_left(slurm, index)


def test_a_notice_saves_every_training_and_requeues_the_job_beside_another_on_the_same_node(slurm):
    """And scancel leaves nothing."""
    long, on_request = {"sweep": long_sweep(10_000)}, ("resources.state_every=0",)  # a state is saved only then
    first = Job(slurm, "first", "--nodes=1", "--nodelist=node0", **long, settings=on_request)
    second = Job(slurm, "second", "--nodes=1", "--nodelist=node0", "--gres=none", **long)
    for job in (first, second):
        job.trains_on()
    gpus = sorted("GPU,1" in command for command in rays(slurm, 0) if "--static_resource_list" in command)
    assert gpus == [False, True], "as Slurm gave them"
    assert {job.shown()["JobState"] for job in (first, second)} == {"RUNNING"}
    slurm.call("scancel", "--batch", "--signal=USR1", first.number)
    first.wait_for_restart()
    assert "trainings save their state" in first.output
    assert "stopped (SIGTERM)" in first.output, "in order"
    first.trains_on()
    second.trains_on()
    began = [found["time"] for found in first.events("began")]
    assert len(began) == 2, "the first training, and again"
    epochs = first.events("epochs")
    before = sum(found["epochs"] for found in epochs if found["time"] < began[1])
    assert next(found["epochs"] for found in epochs if found["time"] > began[1]) == before > 0, "not one is trained again"
    slurm.call("scancel", first.number, second.number)
    assert_nothing_is_left(slurm, 0)
