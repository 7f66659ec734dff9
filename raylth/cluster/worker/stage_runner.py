"""Runs stages in a worker process, whether a Tune trial or a Ray task: leases, errors as results, progress, trace.

torch and all that needs it are imported by the first stage, not by the process's start: while an actor is starting, Tune
may give its trial to another actor that has just become free, and ends the one that is starting. With short stages and
a start of several seconds no second worker would ever come up.
"""

import contextlib
import gc
import importlib
import os
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray

from raylth.cluster.nodes.preflight import compare, versions
from raylth.cluster.worker import gpu
from raylth.cluster.worker.checkpoint_cache import CheckpointReader
from raylth.cluster.worker.draining import Drain
from raylth.cluster.worker.epoch_counter import EpochReporter
from raylth.cluster.worker.payload import Shared, Work
from raylth.cluster.worker.trace import Trace
from raylth.common.importing import uncollected
from raylth.core.memory import DeviceLost, is_out_of_memory, release_memory
from raylth.store import BrokenArtefact, Lease, StorageUnreachable, Store, locate

if TYPE_CHECKING:
    from raylth.stages import Context, Stage

__all__ = ["StageRunner"]


class StageRunner:
    """One worker process."""

    work: Work  # that it was given last

    def begin(self, shared: Shared) -> None:
        """Take the handles; data and torch come with the first stage."""
        compare(shared.versions, {ray.util.get_node_ip_address(): versions()})  # of a machine that came later
        self.shared = shared
        gpu.see_only(ray.get_gpu_ids())
        self.store = Store(shared.root)
        self.reader = CheckpointReader(shared.checkpoints, self.store)
        self.drain = Drain()
        self.epochs_trained, self.trace = EpochReporter(shared.epoch_counter), Trace()
        self.contexts: dict[str, Context] = {}  # device -> what stages run with, for the life of the process
        self.is_busy = self.is_asked_to_stop = False
        self.steps_left: int | None = None  # of a training that is only tried
        self.notes: dict[str, None] = {}  # lines for the driver's person, each once
        signal.signal(signal.SIGTERM, self._ask_to_stop)  # sent by a machine that is shutting down

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Do `work`, with what stages need imported; a request to stop waits until the stage can be left."""
        for module in self.shared.imports:
            importlib.import_module(module)
        self.is_busy = True
        self.is_asked_to_stop |= self.drain()
        with uncollected():
            import torch

            import raylth.stages  # noqa: F401

        torch.set_num_threads(self.work.cpus)
        self.notes = {}
        try:
            yield
        finally:
            self.is_busy = False

    def run_one(self, key: str) -> dict[str, Any]:
        """Run a stage to its end; returns what the searcher is to know of it."""
        from raylth.stages import Preempted, read_stage

        stage = read_stage(self.shared.stages[key])
        result: dict[str, Any] = {"outcome": "done", "error": None, "broken": None, "computed": False}
        start = time.perf_counter()
        self.steps_left = self.work.steps
        if self.is_asked_to_stop:
            raise Preempted("asked to stop between two stages")
        try:
            gpu.reset_peak()
            with Lease(self.store, stage.key) as lease:
                if not lease.held:
                    return result | {"outcome": "elsewhere"}
                result["computed"] = not self.store.has(stage.key)
                if result["computed"]:
                    self.trace("began", key)
                reason = self._compute(stage)
                if result["computed"]:
                    self.trace("ended", key)
            if reason is not None:
                result |= {"outcome": "diverged", "error": reason}
        except Preempted:
            if self.is_asked_to_stop:
                raise  # Tune takes the process out of use, and the searcher starts the stage elsewhere
            result |= {"outcome": "tried"}
        except Exception as error:  # anything that a stage raises is reported; Tune would end the process
            result |= self._failure(stage, error)
            self._recover(error)
        finally:
            self.epochs_trained.flush()
        if result["outcome"] == "done":
            for made in stage.produces:
                self.reader.hand_over(stage.kind, made)
        elif result["outcome"] == "tried":
            result |= self._try_evaluation(stage)
            with contextlib.suppress(OSError):  # its steps may be another engine's: the whole training is one's
                self.store.drop_state(stage.key)
        result["peak_bytes"] = gpu.peak_bytes() if self.work.workers == 1 else None
        return result | {"seconds": time.perf_counter() - start}

    def _compute(self, stage: "Stage") -> str | None:
        """Compute a stage here, or with workers of its own."""
        from raylth.cluster.worker.data_parallel import run_team
        from raylth.stages import run_stage

        if self.work.workers > 1:
            return run_team(stage, self.shared, self.work)
        return run_stage(stage, self._context(gpu.device(self.work.gpus)))

    def _try_evaluation(self, stage: "Stage") -> dict[str, Any]:
        """Evaluate as the tried stage will at its end, which may take more memory than its steps; returns what that changes.

        Other errors than a lack of memory change nothing: the stage itself will say what is wrong.
        """
        from raylth.stages import evaluate_a_batch

        gc.collect()  # the tried network; what torch has cached stays, as it does in a training
        changed: dict[str, Any] = {}
        try:
            evaluate_a_batch(stage, self._context(gpu.device(self.work.gpus)))
        except Exception as error:
            if is_out_of_memory(error):
                changed = self._failure(stage, error)
            self._recover(error)
        return changed

    def _failure(self, stage: "Stage", error: Exception) -> dict[str, Any]:
        """Return what the searcher is to know of what a stage raised; the traceback of its own errors is kept."""
        from raylth.cluster.worker.data_parallel import TeamLost

        line = f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, TeamLost):
            return {"outcome": error.cause, "error": str(error)}
        if isinstance(error, BrokenArtefact):
            return {"outcome": "broken", "broken": error.key, "error": str(error)}
        if isinstance(error, StorageUnreachable):
            return {"outcome": "storage unreachable", "error": str(error)}
        if is_out_of_memory(error):
            return {"outcome": "out of memory", "error": line}
        with contextlib.suppress(OSError):  # the disk may be what failed
            (locate(self.shared.errors) / f"{stage.key}.txt").write("".join(traceback.format_exception(error)).encode())
        return {"outcome": "failed", "error": line}

    def _recover(self, error: Exception) -> None:
        """Give back what a failed computation holds; DeviceLost when this process cannot use its GPU after it any more.

        Tune replaces a process that raises, and every later stage would fail in this one. A lack of memory is no exception:
        its names are some that a lost device has, too.
        """
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        release_memory(error)
        if self.work.gpus and self.work.workers == 1 and not gpu.is_healthy():
            raise DeviceLost(f"this process can no longer use its GPU after {line}") from error

    def _progress(self, key: str, epochs: int) -> None:
        self.epochs_trained(epochs)
        self.trace("epochs", key, epochs=epochs)

    def _must_stop(self) -> bool:
        """Whether the training is to be saved and left: the process must end, or it was to be tried only."""
        if self.steps_left is not None:
            self.steps_left -= 1
        self.is_asked_to_stop |= self.drain()
        return self.is_asked_to_stop or (self.steps_left is not None and self.steps_left < 0)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM: a training saves its state at its next step, but a team's; a process without work ends at once."""
        self.is_asked_to_stop = True
        if not self.is_busy:
            os._exit(128 + number)
        if self.work.workers > 1:  # the team ends with the process that waits for it
            from raylth.stages import Preempted

            raise Preempted("asked to stop; its workers continue from their last saved epoch")

    def _context(self, device: str) -> "Context":
        if device not in self.contexts:
            self.contexts[device] = self.shared.context(device, self.store, self.reader, self._progress, self._must_stop)
        return replace(self.contexts[device], engine=self.work.engine, note=self._note)

    def _note(self, line: str) -> None:
        self.notes[line] = None
