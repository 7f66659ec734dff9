"""Each name of `ray_private` against the Ray that is installed, and that no other module uses a private name of Ray.

Where one fails with a new Ray: mend the function in raylth/cluster/ray_private.py, whose docstring says what it leans on.
"""

import ast
import dataclasses
import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
import ray
from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylth.cluster import ray_private
from tests.cluster.local_nodes import started

ROOT = Path(__file__).parents[2]
RAY = Path(ray.__file__).parent
SECOND = "127.0.0.2"  # the address of the cluster's second node


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes with a core each, made by `ray start` in a folder of its own; gives address and folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = Path(tempfile.mkdtemp(prefix="r"))  # short: sockets lie below it
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TMPDIR", str(folder))
        for name, value in ray_private.DRIVER_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv(ray_private.START_TIMEOUT, "2")
        patch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")  # the cluster's end waits for nobody
        with started(dict(os.environ), SECOND) as address:
            ray.init(address, log_to_driver=False)
            yield ray.get_runtime_context().gcs_address, str(folder)
            ray.shutdown()


def at(address: str) -> NodeAffinitySchedulingStrategy:
    """Have an actor run on the node at an address."""
    (node,) = (node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == address)
    return NodeAffinitySchedulingStrategy(node, soft=False)


def output_of(code: str, **environment: str) -> str:
    """Run code in a process of its own, where Ray reads the environment anew."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Files, commands and variables.


def test_a_cluster_is_named_in_its_file_and_answers_the_health_check(cluster):
    address, folder = cluster
    file = ray_private.current_cluster_file(folder)
    assert file.read_text().strip() == address
    ask = subprocess.run(ray_private.health_check_command(address), capture_output=True, text=True, timeout=60, check=False)
    assert ask.returncode == 0, ask.stderr


def test_rays_longest_socket_path_is_as_recorded(cluster):
    _, folder = cluster
    (socket, *_) = Path(folder).glob("ray/session_2*/sockets/plasma_store")
    process = re.search(r"_(\d+)/sockets", str(socket))[1]
    longest = len(str(socket)) - len(folder) - len(process) + len("4194304")  # the largest number of a process on Linux
    assert longest == ray_private.SOCKET_PATH_BYTES


@pytest.mark.parametrize("name", [*ray_private.DRIVER_ENVIRONMENT, ray_private.START_TIMEOUT, "RAY_enable_autoscaler_v2"])
def test_ray_reads_the_variable(name):
    assert _is_read(name)


def test_a_variable_that_ray_does_not_read_is_found_out():
    assert not _is_read("RAY_prestart_worker_of_nobody")
    assert not _is_read("TUNE_NOTHING_OF_THE_KIND")


def _is_read(name: str) -> bool:
    """Whether Ray's Python names a variable, or its core has the setting that is called so behind RAY_."""
    folders = ("_private", "air", "autoscaler", "train", "tune")
    sources = (path for folder in folders for path in (RAY / folder).rglob("*.py"))
    if any(name in path.read_text() for path in sources):
        return True
    return name.startswith("RAY_") and name.removeprefix("RAY_").encode() in (RAY / "core/src/ray/raylet/raylet").read_bytes()


def test_the_head_has_its_cluster_file_at_the_recorded_path():
    name = Path(ray_private.BOOTSTRAP).name
    assert f'"~/{name}"' in (RAY / "autoscaler/_private/commands.py").read_text()


# Nodes.


@pytest.mark.parametrize(("mode", "asks"), [("token", "True"), ("disabled", "False")])
def test_it_is_known_whether_a_token_is_asked_for(mode, asks):
    code = "from raylth.cluster.ray_private import asks_for_token as ask; print(ask())"
    assert output_of(code, RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN="0123456789abcdef" * 4) == asks


@ray.remote(num_cpus=0, max_restarts=0)
class Worker:
    def raylet(self):
        return os.getppid()

    def wait(self):
        time.sleep(100)


def test_a_drained_node_is_known_and_what_dies_there_is_preempted(cluster):
    """With a node of its own, which dies."""
    address, _ = cluster
    words = [str(Path(sys.executable).with_name("ray")), "start", "--address", address, "--num-cpus", "1", "--block"]
    third = [*words, "--node-ip-address", "127.0.0.3", "--disable-usage-stats"]
    with subprocess.Popen(third, stdout=subprocess.PIPE, text=True) as node:
        assert any("Ray runtime started" in line for line in node.stdout)
        worker = Worker.options(scheduling_strategy=at("127.0.0.3")).remote()
        raylet = ray.get(worker.raylet.remote())
        assert ray_private.draining_nodes(timeout=5) == set()
        ray_private.drain_machine(address, "127.0.0.3", "to see", 100)
        assert ray_private.draining_nodes(timeout=5) == {at_id("127.0.0.3")}
        os.kill(raylet, signal.SIGKILL)
        with pytest.raises(ray.exceptions.RayActorError) as raised:
            ray.get(worker.wait.remote())
        node.terminate()
    assert ray_private.is_preempted(raised.value)
    assert not ray_private.is_preempted(ray.exceptions.ActorDiedError())
    with pytest.raises(RuntimeError, match=r"has no machine 10\.0\.0\.9"):
        ray_private.drain_machine(address, "10.0.0.9", "to see", 100)


def at_id(address: str) -> str:
    return at(address).node_id


# The autoscaler.


@pytest.fixture
def availability():
    """The first autoscaler's record of a type that AWS refused."""
    from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    tracker = NodeProviderAvailabilityTracker()
    refused = NodeLaunchException("InsufficientInstanceCapacity", "there is none", None)
    tracker.update_node_availability("spot", int(time.time()), refused)
    tracker.update_node_availability("on-demand", int(time.time()), None)
    return tracker.summary()


def test_what_the_cloud_refuses_is_read_from_the_autoscalers_report(cluster, availability):
    from ray._private import ray_constants
    from ray.autoscaler._private.autoscaler import AutoscalerSummary
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    assert ray_private.unavailable_node_types() == {}
    fields = {field.name: {} for field in dataclasses.fields(AutoscalerSummary)}
    report = AutoscalerSummary(**{**fields, "node_availability_summary": availability})
    as_monitor_writes = json.dumps({"autoscaler_report": dataclasses.asdict(report)})
    _internal_kv_put(ray_constants.DEBUG_AUTOSCALING_STATUS, as_monitor_writes, overwrite=True)
    assert ray_private.unavailable_node_types() == {"spot": "InsufficientInstanceCapacity"}
    _internal_kv_del(ray_constants.DEBUG_AUTOSCALING_STATUS)


def test_the_autoscaler_scores_types_and_knows_which_were_refused(availability):
    score = {
        cpus: ray_private.utilization_score({"CPU": cpus}, [{"CPU": 2}], node_availability_summary=availability)
        for cpus in (1, 2, 8)
    }
    assert score[1] is None
    assert score[2] > score[8], "a machine that is used wholly comes first"
    assert not ray_private.is_node_type_available(availability, "spot")
    assert ray_private.is_node_type_available(availability, "on-demand")
    assert ray_private.is_node_type_available(availability, "never asked for")


def test_the_head_is_started_with_the_first_autoscaler_and_our_score():
    from ray.autoscaler._private.constants import AUTOSCALER_UTILIZATION_SCORER_KEY

    start = (ROOT / "scripts/node-start.sh").read_text()
    assert f"export {AUTOSCALER_UTILIZATION_SCORER_KEY}=raylth.cluster.nodes.node_scorer.score" in start
    assert "export RAY_enable_autoscaler_v2=0" in start
    code = "import ray; print(bool(ray._config.enable_autoscaler_v2()))"
    assert [output_of(code, RAY_enable_autoscaler_v2=value) for value in "01"] == ["False", "True"]


# Tune's controller.


class Quick(tune.Trainable):
    """Ends when there is a file, or raises where it is named so. It is slow in becoming the next trial."""

    def step(self):
        if self.config["until"] == "raises":
            raise ValueError("so it was asked")
        while not Path(self.config["until"]).exists():
            time.sleep(0.05)
        return {"done": True}

    def reset_config(self, new_config):
        time.sleep(0.3)
        self.config = new_config
        return True


class Script(Searcher):
    """Suggests one trial after another, and looks at Tune's controller in between."""

    def __init__(self, file):
        super().__init__()
        self.file = file
        self.controller, self.seen, self.error = None, [], None
        self.acts = self.play()

    def __getstate__(self):
        return {}

    def suggest(self, trial_id):
        return next(self.acts, Searcher.FINISHED)

    def play(self):
        """Each None lets Tune's loop take a turn."""
        yield {"until": str(self.file)}
        yield {"until": str(self.file)}
        while self.controller is None or len(live := ray_private.live_trials(self.controller)) < 2:
            yield None
        while not all(trial.status == trial.RUNNING for trial in live):
            yield None
        assert all(ray_private.has_worker(self.controller, trial) for trial in live)
        (resources,) = {trial.placement_group_factory for trial in live}
        ray_private.keep_idle_workers(self.controller, resources, 9)
        self.file.touch()
        while ray_private.num_idle_workers(self.controller) < 2:  # by itself Tune keeps one while no trial waits
            yield None
        self.seen.append("two are kept")
        assert ray_private.has_idle_worker(self.controller, resources)
        assert ray_private.live_trials(self.controller) == []
        yield {"until": "raises"}
        yield None
        (trial,) = ray_private.live_trials(self.controller)
        while not ray_private.is_resetting(self.controller, trial):
            yield None
        self.seen.append("an idle one is reset")
        assert ray_private.has_worker(self.controller, trial)
        while self.error is None:
            yield None
        ray_private.release_idle_workers(self.controller, resources, 9)
        while ray_private.num_idle_workers(self.controller):
            ray_private.end_idle_workers(self.controller)
            yield None
        self.seen.append("none is kept")
        assert not ray_private.has_idle_worker(self.controller, resources)
        yield {"until": str(self.file)}
        while not ray_private.num_idle_workers(self.controller):
            yield None
        ray_private.end_idle_worker(self.controller)
        assert ray_private.num_idle_workers(self.controller) == 0
        end = time.monotonic() + 30
        while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < end:
            ray_private.take_event(self.controller)  # without Tune's own turns, as while it waits for its searcher
            time.sleep(0.1)
        assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"], "what it held is free"
        self.seen.append("one is ended alone")
        yield {"until": "never"}
        while True:
            yield None

    def on_trial_complete(self, trial_id, result=None, error=False):
        pass

    def save(self, checkpoint_path):
        pass

    def restore(self, checkpoint_path):
        pass


class Over(Exception):
    """The end of Tune's loop: it makes no result of a trial that never ran."""


class Scheduler(FIFOScheduler):
    """Shows the controller to the script."""

    def __init__(self, script):
        super().__init__()
        self.script = script

    def choose_trial_to_run(self, tune_controller):
        self.script.controller = tune_controller
        for trial in ray_private.live_trials(tune_controller):
            if trial.config["until"] == "never" and trial.status == trial.PENDING:
                assert not ray_private.has_worker(tune_controller, trial)
                ray_private.stop_trial(tune_controller, trial)
                assert trial.status == trial.TERMINATED
                raise Over
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller, trial):
        self.script.error = ray_private.error_of_trial(trial)


@pytest.mark.timeout(120)
def test_tunes_controller_does_what_is_asked_of_it(cluster, tmp_path):
    script = Script(tmp_path / "end")
    tuner = tune.Tuner(
        Quick,
        tune_config=tune.TuneConfig(search_alg=script, scheduler=Scheduler(script), num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # files that Tune leaves open
        with pytest.raises(Over):
            tuner.fit()
        script.controller = tuner = None
        gc.collect()
    seen = ["two are kept", "an idle one is reset", "none is kept", "one is ended alone"]
    assert script.seen == seen, "the last is stopped, and ends the loop"
    assert isinstance(script.error, ray.exceptions.RayTaskError)
    assert str(script.error.cause) == "so it was asked"


def test_optuna_hears_of_a_trial_that_was_stopped():
    from ray.tune.search.optuna import OptunaSearch

    storage = optuna.storages.InMemoryStorage()
    space = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    searcher = OptunaSearch(space, metric="accuracy", mode="max", study_name="s", storage=storage)
    for trial in ("stopped", "ended"):
        assert 0 <= searcher.suggest(trial)["x"] <= 1
        ray_private.set_trial_attribute(searcher, trial, "epochs", 3)
    ray_private.tell_pruned(searcher, "stopped")
    searcher.on_trial_complete("ended", {"accuracy": 0.5})
    searcher.on_trial_complete("stopped", {"accuracy": 0.1})  # as Tune may; it is not counted twice
    found = optuna.load_study(study_name="s", storage=storage).trials
    assert [trial.state.name for trial in found] == ["PRUNED", "COMPLETE"]
    assert [trial.user_attrs for trial in found] == [{"epochs": 3}] * 2


# What Ray raises.


def test_an_actor_that_was_cancelled_never_started(cluster):
    worker = Worker.options(resources={"none has it": 1}).remote()
    ray.kill(worker)
    with pytest.raises(ray.exceptions.RayActorError) as raised:
        ray.get(worker.wait.remote())
    assert ray_private.is_never_started(raised.value)
    assert not ray_private.is_killed_for_memory(raised.value)
    assert not ray_private.is_never_started(ray.exceptions.ActorDiedError())


FULL = """
import time, ray
from raylth.cluster.ray_private import is_killed_for_memory
ray.init("local", num_cpus=1, log_to_driver=False, include_dashboard=False)
@ray.remote(max_restarts=0)
class Worker:
    def wait(self):
        time.sleep(60)
try:
    ray.get(Worker.remote().wait.remote())
except ray.exceptions.RayError as error:
    print(is_killed_for_memory(error) or isinstance(error, ray.exceptions.OutOfMemoryError) or error)
"""


def test_an_actor_that_ray_killed_for_memory_is_known():
    """Ray is told that a hundredth of the memory is all of it."""
    settings = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100", "RAY_AUTH_MODE": "disabled"}
    assert output_of(FULL, **settings, RAY_TMPDIR=tempfile.mkdtemp(prefix="r")) == "True"


WARNS = pytest.mark.filterwarnings("default::DeprecationWarning")  # Ray Data's own, of its own settings


def train(function, workers: int, tmp_path, before_start=lambda: None):
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        function,
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        torch_config=ray_private.torch_config(before_start, {"backend": "gloo", "timeout_s": 100}),
        run_config=RunConfig(
            storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=0, controller_failure_limit=0)
        ),
    ).fit()


@WARNS
def test_a_function_runs_on_each_worker_before_torchs_processes_meet(cluster, tmp_path):
    def before_start():
        import torch

        os.environ["RAYLTH_MET_BEFORE"] = str(torch.distributed.is_initialized())

    def look():
        import torch

        return os.environ["RAYLTH_MET_BEFORE"], torch.distributed.is_initialized()

    assert train(look, 1, tmp_path, before_start).return_value == ("False", True)


@WARNS
def test_workers_for_which_there_is_no_room_are_a_timeout(cluster, tmp_path):
    from ray.train import ControllerError

    with pytest.raises(ControllerError) as raised:
        train(lambda: None, 9, tmp_path)
    assert ray_private.is_start_timeout(raised.value)
    assert not ray_private.is_start_timeout(ControllerError(RuntimeError("another")))


@WARNS
def test_a_worker_that_died_is_distinguished_from_one_that_raised(cluster, tmp_path):
    from ray.train import WorkerGroupError

    def die():
        time.sleep(3)  # one that dies while it starts is the controller's error
        os._exit(1)

    with pytest.raises(WorkerGroupError) as raised:
        train(die, 1, tmp_path)
    assert isinstance(ray_private.worker_error(raised.value.worker_failures[0]), ray.exceptions.RayActorError)
    own = ValueError("own")
    assert ray_private.worker_error(own) is own


# The rest of raylth.

UNDOCUMENTED = {  # of Tune's controller, trials and Optuna searcher, and of Ray Train's errors
    "error_file",
    "get_live_trials",
    "health_check_failure",
    "pickled_error_file",
    "stop_trial",
}
PRIVATE = {
    "_actor_cache",
    "_actor_manager",
    "_cleanup_cached_actors",
    "_completed_trials",
    "_ot_study",
    "_ot_trials",
    "_resetting_trials",
    "_trial_to_actor",
}
INTERNAL = ("ray.core", "ray.experimental", "ray.scripts", "ray.autoscaler", "ray.train.v2")  # without an underscore


def test_a_result_grid_is_made_of_what_was_trained_already(tmp_path):
    results = [{"training_iteration": epoch, "accuracy": 50.0 + epoch, "config": {"arm": "lth"}} for epoch in (1, 2)]
    frame = pd.DataFrame({"accuracy": [51.0, 52.0]})
    networks = [
        SimpleNamespace(id="a", path=str(tmp_path), config={"arm": "lth"}, results=results, frame=frame, error=None),
        SimpleNamespace(id="b", path="", config={}, results=results[:1], frame=frame[:1], error=RuntimeError("diverged")),
    ]
    grid = ray_private.result_grid(str(tmp_path), LocalFileSystem(), networks)
    assert isinstance(grid, tune.ResultGrid)
    best = grid.get_best_result("accuracy", "max")
    assert (best.metrics["accuracy"], best.config, best.checkpoint.path) == (52.0, {"arm": "lth"}, str(tmp_path))
    assert best.metrics_dataframe is frame
    assert [str(error) for error in grid.errors] == ["diverged"]
    assert grid[1].checkpoint is None
    assert grid.get_dataframe()["accuracy"].tolist() == [52.0, 51.0]


def uses(text: str) -> list[str]:
    """Return what of Ray's private names a module uses."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            if node.attr in PRIVATE | UNDOCUMENTED and names != [f"ray_private.{node.attr}"]:
                found.append(node.attr)
        else:
            continue
        rays = [name for name in names if name.split(".")[0] == "ray"]
        found += [name for name in rays if "._" in name or name.startswith(INTERNAL)]
    return found


MODULES = sorted(set((ROOT / "raylth").rglob("*.py")) - {Path(ray_private.__file__)})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_uses_a_private_name_of_ray(path):
    assert uses(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import ray._private.worker",
        "from ray._raylet import GcsClient",
        "from ray.train.torch.config import _TorchBackend",
        "from ray.core.generated import gcs_pb2",
        "ray._private.state.state",
        "from ray.train.v2.api.exceptions import PreemptionError",
        "tune_controller._actor_cache",
        "trial.error_file",
    ],
)
def test_a_private_name_is_found(text):
    assert uses(text)


def test_every_name_is_used():
    """And what a later raylth does not need goes."""
    text = "".join(path.read_text() for path in MODULES)
    assert [name for name in ray_private.__all__ if not re.search(rf"\b{name}\b", text)] == []
