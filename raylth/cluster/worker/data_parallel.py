"""Several workers that train one network: Ray Train starts them, all run the same stage, and the first of them writes."""

import importlib
import os
import tempfile
import traceback
from typing import Any

import psutil
import ray

from raylth.cluster import failures, ray_private
from raylth.cluster.slots import Nodes, room
from raylth.cluster.worker.checkpoint_cache import CheckpointReader
from raylth.cluster.worker.epoch_counter import EpochReporter
from raylth.cluster.worker.payload import Shared, Work
from raylth.cluster.worker.trace import Trace
from raylth.core.memory import is_out_of_memory
from raylth.core.training.data_parallel import Team
from raylth.stages import Preempted, Stage, read_stage, run_stage
from raylth.store import Store

__all__ = ["TeamLost", "num_workers", "run_team"]

START_SECONDS = 30  # until it is looked again how many workers there is room for
COPYING_SECONDS = 86400  # that one worker may wait for another whose machine copies images; Ray sees those that are dead
NOTICE_STEPS = 20  # of a training, between two questions whether a machine is to go


class TeamLost(RuntimeError):
    """A team that ended before its training did, not by an error of its own; `cause` is one of `failures`."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def num_workers(nodes: Nodes, work: Work) -> int:
    """Return how many workers to start: as many as asked for, or as there is room for where that is allowed.

    Where there is not even room for the fewest, all are asked for, and waited for.
    """
    possible = room(nodes, work.cpus, work.gpus)
    return possible if work.min_workers <= possible < work.workers else work.workers


def run_team(stage: Stage, shared: Shared, work: Work) -> str | None:
    """Run a training stage with several workers, and return what `run_stage` returns.

    While there is no room for them it waits, and looks again how many there is room for. Raises
    TeamLost when workers were lost, and else what a worker raised.
    """
    from ray.train import TrainingFailedError

    os.environ.setdefault(ray_private.START_TIMEOUT, str(START_SECONDS))
    while True:
        try:
            return _fit(stage, shared, work)
        except TrainingFailedError as error:
            traceback.clear_frames(error.__traceback__)  # they hold Ray Train's controller, and it the team's CPUs
            if ray_private.is_start_timeout(error):
                continue
            raise _cause(error) from error


def _fit(stage: Stage, shared: Shared, work: Work) -> str | None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = {"CPU": work.cpus, **({"GPU": work.gpus} if work.gpus else {})}
    failure: dict[str, Any] = {"max_failures": 0, "controller_failure_limit": 0, "max_preemption_failures": 0}
    with tempfile.TemporaryDirectory(prefix="raylth-team-", ignore_cleanup_errors=True) as folder:
        trainer = TorchTrainer(
            _member,  # type: ignore[arg-type]  # mypy sees Ray Train's first version, here and below
            train_loop_config={"stage": stage.to_dict(), "shared": shared, "cpus": work.cpus},
            scaling_config=ScalingConfig(
                num_workers=num_workers(nodes, work), use_gpu=bool(work.gpus), resources_per_worker=each
            ),
            torch_config=ray_private.torch_config(
                _choose_interface,  # torch's processes meet on the network on which Ray's do
                {"backend": "cpu:gloo,cuda:nccl" if work.gpus else "gloo", "timeout_s": COPYING_SECONDS},
            ),
            # Nothing is written to the folder: the store has it all.
            run_config=RunConfig(storage_path=folder, name="team", failure_config=FailureConfig(**failure)),
        )
        found: str | None = trainer.fit().return_value  # type: ignore[attr-defined]
    return found


def _choose_interface() -> None:
    """Name the network interface that has this machine's address in Ray; by its host name alone it may be 127.0.0.1."""
    address = ray.util.get_node_ip_address()
    for name, found in psutil.net_if_addrs().items():
        if any(one.address == address for one in found):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


class _Notice:
    """Whether a machine of the team is to go. All workers must ask alike, and Ray Train's answer takes a while."""

    def __init__(self) -> None:
        self.times, self.is_given = 0, False

    def __call__(self) -> bool:
        from ray import train

        if self.times % NOTICE_STEPS == 0:
            self.is_given = train.get_preemption_info() is not None
        self.times += 1
        return self.is_given


def _member(config: dict[str, Any]) -> str | None:
    """One worker: take part in the stage."""
    import torch
    from ray import train
    from ray.train.torch import get_device

    shared, stage = config["shared"], read_stage(config["stage"])
    for module in shared.imports:
        importlib.import_module(module)
    torch.set_num_threads(config["cpus"])
    team = Team(train.get_context().get_world_rank(), train.get_context().get_world_size())
    store, reporter, trace = Store(shared.root), EpochReporter(shared.epoch_counter), Trace()

    def progress(key: str, epochs: int) -> None:
        if team.rank == 0:
            reporter(epochs)
            trace("epochs", key, epochs=epochs)

    context = shared.context(
        str(get_device()),
        store,
        CheckpointReader(shared.checkpoints, store),
        progress,
        stopping=_Notice(),
        team=team,
    )
    try:
        return run_stage(stage, context)
    finally:
        reporter.flush()


def _cause(error: Exception) -> Exception:
    """Return what a team's end comes from: workers that were lost before what the others met with because of that."""
    from ray.train import PreemptionError, WorkerGroupError

    if isinstance(error, PreemptionError):
        return TeamLost(failures.PREEMPTED, str(error))
    if not isinstance(error, WorkerGroupError):
        return TeamLost(failures.CRASHED, _line(error))
    found: dict[int, Exception] = {
        rank: ray_private.worker_error(each) for rank, each in sorted(error.worker_failures.items())
    }
    for each in found.values():  # NCCL's own lack of memory looks like another's end, and the others hang because of it
        if is_out_of_memory(each):
            return each
    for is_meant in (_is_rays, lambda each: isinstance(each, Preempted)):  # died or hung, and stopped
        for rank, each in found.items():
            if is_meant(each):
                return TeamLost(failures.cause_of(each), f"worker {rank}: {_line(each)}")
    own = [each for each in found.values() if not _is_of_another(each)]
    return own[0] if own else TeamLost(failures.CRASHED, _line(next(iter(found.values()))))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is_rays(error: BaseException) -> bool:
    """Whether Ray says that a worker is dead, or does not answer."""
    return isinstance(error, ray.exceptions.RayError) or type(error).__module__.startswith("ray.train")


def _is_of_another(error: BaseException) -> bool:
    """Whether a worker only met with another's end."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)
