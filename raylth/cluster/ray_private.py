"""What raylth uses of Ray beyond its public API: one function each, and no other module uses a private name of Ray.

tests/cluster/test_ray_private.py holds each to the Ray that is installed. A function imports what it needs when it is
called: the address of a cluster is chosen before `import ray`, and a name that a later Ray lacks fails only where it is used.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = [
    "BOOTSTRAP",
    "DRIVER_ENVIRONMENT",
    "SOCKET_PATH_BYTES",
    "START_TIMEOUT",
    "asks_for_token",
    "current_cluster_file",
    "drain_machine",
    "draining_nodes",
    "end_idle_worker",
    "end_idle_workers",
    "error_of_trial",
    "has_idle_worker",
    "has_worker",
    "health_check_command",
    "is_killed_for_memory",
    "is_never_started",
    "is_node_type_available",
    "is_preempted",
    "is_resetting",
    "is_start_timeout",
    "keep_idle_workers",
    "live_trials",
    "num_idle_workers",
    "release_idle_workers",
    "result_grid",
    "set_trial_attribute",
    "stop_trial",
    "take_event",
    "tell_pruned",
    "torch_config",
    "unavailable_node_types",
    "utilization_score",
    "worker_error",
]

# Files, commands and variables.

BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""The cluster file that `ray up` leaves on the head; no documentation names it, and nothing public gives its content."""

SOCKET_PATH_BYTES = 68
"""Length of "/ray/session_<date>_<time>_<process>/sockets/plasma_store", which Ray puts behind its temporary folder."""

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Seconds that Ray Train waits for its workers' resources; read from the environment, no setting of a trainer."""

DRIVER_ENVIRONMENT = {
    "RAY_prestart_worker_first_driver": "0",  # a Ray that is started here stands a second earlier
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Parquet is the record
    "TUNE_MAX_PENDING_TRIALS_PG": "200",  # for a custom searcher Tune takes 1: workers would start one after another
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours stops at once; the store has everything that is finished
    "RAY_ROTATION_MAX_BYTES": str(64 * 2**20),  # of each log file of a Ray that is started here
    "RAY_ROTATION_BACKUP_COUNT": "2",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the store is the state, Tune's own is never read
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
"""Environment variables of the driver that Ray and Tune read; some are documented, none has a setting in their API."""


def current_cluster_file(folder: str) -> Path:
    """Return the file in which `ray start` names its cluster, in Ray's temporary folder.

    `ray.init(address="auto")` reads it, and is the public way; it waits minutes for a cluster that is gone.
    """
    return Path(folder) / "ray" / "ray_current_cluster"


def health_check_command(address: str) -> list[str]:
    """Return the command that ends with 0 where Ray's control service answers at an address and takes our token.

    It is the hidden `ray health-check`. The public way is `ray.init`, which can be done once in a process, and waits long.
    """
    return [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", address]


# Nodes.


def asks_for_token() -> bool:
    """Return whether the Ray of this process requires a token. Ray has no public way to ask."""
    from ray._raylet import AuthenticationMode, get_authentication_mode  # type: ignore[attr-defined]

    return bool(get_authentication_mode() != AuthenticationMode.DISABLED)


def draining_nodes(timeout: float) -> set[str]:
    """Return the ids, in hexadecimal, of the nodes that are to go away; raises ray.exceptions.RayError after `timeout` s.

    From this process's client of the control service. Publicly Ray tells only members of a Ray Train worker group
    (`ray.train.get_preemption_info`).
    """
    from ray._private.worker import global_worker

    client: Any = global_worker
    found = client.gcs_client.get_draining_nodes(timeout=timeout)
    return {node if isinstance(node, str) else node.hex() for node in found}


def drain_machine(head: str, address: str | None, why: str, seconds: float) -> None:
    """Have Ray give the node at `address` (None: all nodes) no more work, since it will be preempted in so many seconds.

    It needs no `ray.init`, as the hidden command `ray drain-node`, which needs the node's id; Ray has no public way. Raises
    RuntimeError when the cluster at `head` has no such node, or refuses.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2, gcs_pb2

    client = GcsClient(address=head)
    alive = gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE  # type: ignore[attr-defined]
    found = client.get_all_node_info()
    ours = [node for node, info in found.items() if address in (None, info.node_manager_address) and info.state == alive]
    if not ours:
        raise RuntimeError(f"Ray at {head} has no machine {address}")
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]
    for node in ours:
        is_accepted, refusal = client.drain_node(node.hex(), reason, why, int(1000 * (time.time() + seconds)))
        if not is_accepted:
            where = found[node].node_manager_address
            raise RuntimeError(f"Ray at {head} does not drain {where}: {refusal}")


# The autoscaler (its first version: docs/cluster-versions.md).


def unavailable_node_types() -> dict[str, str]:
    """Return why the cloud refuses types of machines now, by name; empty without the first autoscaler.

    From the report that the autoscaler keeps in Ray's key-value store; `ray status` prints it for people.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    stored = _internal_kv_get("__autoscaling_status")
    summary = (json.loads(stored) if stored else {}).get("autoscaler_report", {}).get("node_availability_summary", {})
    found = {}
    for name, record in summary.get("node_availabilities", {}).items():
        why = record.get("unavailable_node_information")
        if not record["is_available"] and why:
            found[name] = why["category"]
    return found


def utilization_score(
    node_resources: dict[str, Any], resources: list[dict[str, Any]], *, node_availability_summary: Any
) -> tuple[Any, ...] | None:
    """Return the first autoscaler's own score of a type of machine, higher is better; None when it serves nothing.

    A custom scorer (the variable RAY_AUTOSCALER_UTILIZATION_SCORER) replaces it, and calls it for the rest.
    """
    from ray.autoscaler._private.resource_demand_scheduler import _resource_based_utilization_scorer

    score: tuple[Any, ...] | None = _resource_based_utilization_scorer(
        node_resources, resources, node_availability_summary=node_availability_summary
    )
    return score


def is_node_type_available(node_availability_summary: Any, node_type: str) -> bool:
    """Return whether the cloud has not refused a type of machine lately, as the first autoscaler has it."""
    record = node_availability_summary.node_availabilities.get(node_type)
    return record is None or bool(record.is_available)


# Tune's controller, which a scheduler is handed; publicly it has neither attributes nor methods.


def live_trials(controller: Any) -> list[Any]:
    """Return the trials that have not ended, and some that ended at this turn: their `status` says which."""
    return list(controller.get_live_trials())


def stop_trial(controller: Any, trial: Any) -> None:
    """End a trial, also one that waits; a scheduler may publicly only answer STOP to a result."""
    controller.stop_trial(trial)


def num_idle_workers(controller: Any) -> int:
    """Return how many actors Tune keeps for a trial that may come (`reuse_actors`)."""
    return int(controller._actor_cache.num_cached_objects)


def has_idle_worker(controller: Any, resources: Any) -> bool:
    """Return whether Tune keeps an actor with these resources (a trial's `placement_group_factory`)."""
    return bool(controller._actor_cache.has_cached_object(resources))


def keep_idle_workers(controller: Any, resources: Any, number: int) -> None:
    """Let Tune keep this many more actors with these resources; by itself it keeps as many as trials wait, and one."""
    controller._actor_cache.increase_max(resources, number)


def release_idle_workers(controller: Any, resources: Any, number: int) -> None:
    """Take back what `keep_idle_workers` allowed; Tune ends the actors at its next turn."""
    controller._actor_cache.decrease_max(resources, number)


def end_idle_workers(controller: Any) -> None:
    """End all idle actors now, so that what they hold is free."""
    controller._cleanup_cached_actors(force_all=True)


def end_idle_worker(controller: Any) -> None:
    """End one idle actor now, if there is any, so that what it holds is free."""
    cache = controller._actor_cache
    found = next((key for key, actors in cache._cached_objects.items() if actors), None)
    if found is not None:
        actor = cache.pop_cached_object(found)
        actor.set_on_stop(None)  # as Tune's own `_cleanup_cached_actors` does: no trial is associated with it
        actor.set_on_error(None)
        controller._remove_actor(tracked_actor=actor)


def take_event(controller: Any) -> None:
    """Let Tune's loop take what has happened, such as the end of an actor, while it waits for its searcher."""
    controller._actor_manager.next(timeout=0)


def has_worker(controller: Any, trial: Any) -> bool:
    """Return whether a trial has an actor with its resources: one that runs or starts, or an idle one that it was given."""
    worker = controller._trial_to_actor.get(trial)
    return worker is not None and worker not in controller._actor_manager.pending_actors


def is_resetting(controller: Any, trial: Any) -> bool:
    """Return whether a trial was given an idle actor that has not answered yet; it stays so when the actor is gone."""
    return trial in controller._resetting_trials


def error_of_trial(trial: Any) -> Exception | None:
    """Return what a trial's actor raised, or what Ray raised when it died.

    From the files in the driver's own folder: the public `get_pickled_error` looks where nothing was copied to yet.
    """
    import ray

    if trial.pickled_error_file and Path(trial.pickled_error_file).exists():
        found: Exception = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        return found
    return RuntimeError(Path(trial.error_file).read_text().strip().splitlines()[-1]) if trial.error_file else None


def set_trial_attribute(searcher: Any, trial_id: str, name: str, value: Any) -> None:
    """Attach a value to the Optuna trial behind one of Tune's; OptunaSearch (the searcher) has no public way to it."""
    searcher._ot_trials[trial_id].set_user_attr(name, value)


def tell_pruned(searcher: Any, trial_id: str) -> None:
    """Tell Optuna that a trial was stopped early; OptunaSearch itself would call it complete."""
    from optuna.trial import TrialState

    searcher._ot_study.tell(searcher._ot_trials[trial_id], state=TrialState.PRUNED)
    searcher._completed_trials.add(trial_id)


# What Ray raises.


def result_grid(folder: str, filesystem: Any, networks: list[Any]) -> Any:
    """Return a `ray.tune.ResultGrid` of what was trained already; its constructor is private, and no public way makes one.

    Each of `networks` has `id`, `path` in a pyarrow `filesystem`, `config`, `results` by epoch and `error`, or None.
    """
    from ray.train._internal.session import _TrainingResult
    from ray.tune import Checkpoint, ExperimentAnalysis, ResultGrid
    from ray.tune.experiment import Trial

    trials: dict[str, Any] = {each.id: Trial("raylth", config=each.config, trial_id=each.id, stub=True) for each in networks}
    for network, trial in zip(networks, trials.values(), strict=True):
        trial.storage = SimpleNamespace(trial_fs_path=network.path, storage_filesystem=filesystem)
        for result in network.results:
            trial.update_last_result(dict(result))
        trial.status = Trial.ERROR if network.error else Trial.TERMINATED
        if not network.error:
            saved = _TrainingResult(Checkpoint(network.path, filesystem), trial.last_result)
            trial.run_metadata.checkpoint_manager.register_checkpoint(saved)
    errors, frames = ({network.id: getattr(network, name) for network in networks} for name in ("error", "frame"))
    analysis = type("Analysis", (ExperimentAnalysis,), {"_fetch_trial_dataframes": lambda self: frames})
    grid = type("Grid", (ResultGrid,), {"_populate_exception": staticmethod(lambda trial: errors[trial.trial_id])})
    return grid(analysis(f"{folder}/experiment.json", storage_filesystem=filesystem, trials=list(trials.values())))


def is_never_started(error: BaseException | None) -> bool:
    """Return whether an actor was cancelled while it was starting; Ray says so only in the text of ActorDiedError."""
    return "never ran" in str(error) or "SchedulingCancelled" in str(error)


def is_killed_for_memory(error: BaseException | None) -> bool:
    """Return whether the text of an error says that Ray killed a worker for memory; OutOfMemoryError is the public way."""
    return "memory pressure" in str(error)


def is_preempted(error: BaseException | None) -> bool:
    """Return whether an actor's machine was preempted: an attribute of ActorDiedError, in no documentation."""
    return bool(getattr(error, "preempted", False))


def is_start_timeout(error: BaseException) -> bool:
    """Return whether a Ray Train run failed because there was no room for its workers (after `START_TIMEOUT` seconds).

    The public ControllerError holds an error of a private class.
    """
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


def worker_error(error: Exception) -> Exception:
    """Return what is behind one of WorkerGroupError's `worker_failures`: for a dead worker, what Ray says of its end."""
    found: Exception = getattr(error, "health_check_failure", error)
    return found


def torch_config(before_start: Callable[[], None], settings: Mapping[str, Any]) -> Any:
    """Return Ray Train's TorchConfig(**settings) that calls a function on every worker before torch's processes meet.

    By a subclass of the private backend; publicly a worker's first own code runs after they have met.
    """
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(before_start)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config(**settings)
