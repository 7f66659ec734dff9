"""The Tune trial: a warm worker that is handed one stage's key after another.

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
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from raylth.cluster.failures import DeviceLost
from raylth.cluster.nodes.preflight import compare, versions
from raylth.cluster.worker import gpu
from raylth.cluster.worker.checkpoint_cache import CheckpointReader
from raylth.cluster.worker.draining import Drain
from raylth.cluster.worker.epoch_counter import Chalk
from raylth.cluster.worker.payload import Shared
from raylth.cluster.worker.trace import Trace
from raylth.common.importing import uncollected
from raylth.core.memory import is_out_of_memory, release_memory
from raylth.store import BrokenArtefact, Lease, StorageUnreachable, Store, locate

if TYPE_CHECKING:
    from raylth.stages import Context, Stage

__all__ = ["StageTrial"]


class Tries:
    """What became of packs of several sizes: which fitted in memory, and which did not."""

    def __init__(self) -> None:
        self.fitted: list[int] = []
        self.ran_out: list[int] = []

    def note(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Take in the results of a pack's members; those that were not computed here took no memory."""
        trained = [each["outcome"] for each in results if each["computed"]]
        self.fitted.append(sum(outcome in ("done", "diverged") for outcome in trained))
        if "out of memory" in trained:
            self.ran_out.append(len(trained))

    def found(self) -> dict[str, Any]:
        """Return the smallest pack that ran out of memory and the largest below it that fits; nothing where all fitted."""
        if not self.ran_out:
            return {}
        least = min(self.ran_out)
        return {"ran_out": least, "fits": max((size for size in self.fitted if 0 < size < least), default=max(1, least // 2))}


class StageTrial(tune.Trainable):
    """Runs the stages that `config["stages"]` names. The process stays for the next trial (`reuse_actors`)."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Ask for what the stage's share of a machine is. A team's workers ask for theirs when they are started."""
        if config["workers"] > 1:
            return tune.PlacementGroupFactory([{"memory": 1}])  # a byte: next to nothing, which Tune does not take
        return tune.PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]  # with_parameters adds it
        """Take the handles; data and torch come with the first stage."""
        compare(shared.versions, {ray.util.get_node_ip_address(): versions()})  # of a machine that came later
        self.shared = shared
        gpu.see_only(ray.get_gpu_ids())
        self.store = Store(shared.root)
        self.reader = CheckpointReader(shared.checkpoints, self.store)
        self.drain = Drain()
        self.chalk, self.trace = Chalk(shared.board), Trace()
        self.contexts: dict[str, Context] = {}  # device -> what stages run with, for the life of the process
        self.is_busy = self.is_asked_to_stop = False
        self.steps_left: int | None = None  # of a training that is only tried
        self.notes: dict[str, None] = {}  # lines for the driver's person, each once
        signal.signal(signal.SIGTERM, self._ask_to_stop)  # a machine that goes away says so this way

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next stage into the same process."""
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run the stages, one after another. A stage's error is a result, not the end of the worker."""
        for module in self.shared.imports:
            importlib.import_module(module)
        self.is_busy = True
        self.is_asked_to_stop |= self.drain()
        with uncollected():
            import torch

            import raylth.stages  # noqa: F401

        torch.set_num_threads(self.config["cpus"])
        try:
            keys, tries, self.notes = self.config["stages"], Tries(), dict[str, None]()
            if self.config["measure"]:  # then its stage is run with others, as many together as this finds
                outcomes = [{"outcome": "tried", **self._measure(self.config["measure"])}]
            else:
                outcomes = self._run_pack(keys, tries) if self.config["pack"] else [self._run(key) for key in keys]
            return {"done": True, "outcomes": outcomes, "notes": list(self.notes), **tries.found()}
        finally:
            self.is_busy = False

    def _run(self, key: str) -> dict[str, Any]:
        """Run a stage to its end; returns what the searcher is to know of it."""
        from raylth.stages import Preempted, read_stage

        stage = read_stage(self.shared.stages[key])
        result: dict[str, Any] = {"outcome": "done", "error": None, "broken": None, "computed": False}
        start = time.perf_counter()
        self.steps_left = self.config["steps"]
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
            self.chalk.flush()
        if result["outcome"] == "done":
            for made in stage.produces:
                self.reader.hand_over(stage.kind, made)
        elif result["outcome"] == "tried":
            result |= self._try_evaluation(stage)
            with contextlib.suppress(OSError):  # its steps may be another engine's: the whole training is one's
                self.store.drop_state(stage.key)
        result["peak_bytes"] = gpu.peak_bytes() if self.config["workers"] == 1 else None
        return result | {"seconds": time.perf_counter() - start}

    def _compute(self, stage: "Stage") -> str | None:
        """Compute a stage here, or with workers of its own."""
        from raylth.cluster.worker.data_parallel import run_team
        from raylth.stages import run_stage

        if self.config["workers"] > 1:
            return run_team(stage, self.shared, self.config)
        return run_stage(stage, self._context(gpu.device(self.config["gpus"])))

    def _try_evaluation(self, stage: "Stage") -> dict[str, Any]:
        """Evaluate as the tried stage will at its end, which may take more memory than its steps; returns what that changes.

        Other errors than a lack of memory change nothing: the stage itself will say what is wrong.
        """
        from raylth.stages import evaluate_a_batch

        gc.collect()  # the tried network; what torch has cached stays, as it does in a training
        changed: dict[str, Any] = {}
        try:
            evaluate_a_batch(stage, self._context(gpu.device(self.config["gpus"])))
        except Exception as error:
            if is_out_of_memory(error):
                changed = self._failure(stage, error)
            self._recover(error)
        return changed

    def _run_pack(self, keys: list[str], tries: "Tries") -> list[dict[str, Any]]:
        """Train stages that are alike as one program, and those that run out of memory in halves, down to one by itself.

        Returns what the searcher is to know of each.
        """
        from raylth.core.training.packing import NotPackable
        from raylth.stages import Preempted

        if len(keys) == 1:
            return [self._run(keys[0])]
        if self.is_asked_to_stop:
            raise Preempted("asked to stop between two packs")
        try:
            results = self._run_together(keys)
        except NotPackable:
            return [self._run(key) for key in keys]
        again = [key for key in keys if results[key]["outcome"] == "out of memory"]
        tries.note(results.values())
        half = len(again) // 2 if len(again) == len(keys) else len(again)  # fewer than before may go together
        for part in (again[:half], again[half:]):
            if part:
                results.update(zip(part, self._run_pack(part, tries), strict=True))
        return [results[key] for key in keys]

    def _run_together(self, keys: list[str]) -> dict[str, dict[str, Any]]:
        """Train stages as one program while this process holds their leases; returns each one's result."""
        from raylth.core.training.packing import NotPackable
        from raylth.stages import read_stage, run_together

        stages = [read_stage(self.shared.stages[key]) for key in keys]
        start = time.perf_counter()
        self.steps_left = None
        gpu.reset_peak()
        results = {key: {"outcome": "elsewhere", "error": None, "broken": None, "computed": False} for key in keys}
        with contextlib.ExitStack() as leases:
            held = [stage for stage in stages if leases.enter_context(Lease(self.store, stage.key)).held]
            new = {stage.key for stage in held if not self.store.has(stage.key)}
            for key in new:
                self.trace("began", key)
            try:
                outcomes = run_together(held, self._context(gpu.device(self.config["gpus"]))) if held else []
            except NotPackable:
                raise
            except Exception as error:  # of all; a training that must stop is saved, and starts elsewhere
                if self.is_asked_to_stop:
                    raise
                outcomes = [error] * len(held)
            finally:
                self.chalk.flush()
        for stage, outcome in zip(held, outcomes, strict=True):
            result = results[stage.key]
            result |= {"outcome": "done", "computed": stage.key in new}
            if isinstance(outcome, Exception):
                result |= self._failure(stage, outcome)
            else:
                self.trace("ended", stage.key)
                if outcome is not None:
                    result |= {"outcome": "diverged", "error": outcome}
                else:
                    for made in stage.produces:
                        self.reader.hand_over(stage.kind, made)
        for raised in {id(each): each for each in outcomes if isinstance(each, Exception)}.values():
            self._recover(raised)
        seconds = (time.perf_counter() - start) / max(1, len(held))
        return {key: results[key] | {"seconds": seconds, "peak_bytes": None} for key in keys}

    def _measure(self, key: str) -> dict[str, Any]:
        """Find how many networks like a stage's are trained fastest together, and by which engine.

        One, by the plain loop, where that cannot be found out.
        """
        from raylth.core.training.pack_tuning import SIZES, Fastest, fastest_pack
        from raylth.stages import read_stage
        from raylth.stages.settings import TrainingSettings
        from raylth.stages.training import new_network

        stage = read_stage(self.shared.stages[key])
        settings = stage.settings
        assert isinstance(settings, TrainingSettings)
        context = self._context(gpu.device(self.config["gpus"]))
        try:
            found = fastest_pack(
                lambda: new_network(settings.model, 0, context.device),
                context.train,
                settings.recipe,
                settings.augment,
                engines=self.config["engines"],
                sizes=self.config["sizes"] or SIZES,
            )
        except Exception as error:  # the stage itself will say what is wrong
            found = Fastest(1)
            self._recover(error)
        for line in found.notes:
            self.notes[line] = None
        return {"pack_size": found.size, "pack_engine": found.engine, "pack_rates": found.rates}

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
        if self.config["gpus"] and self.config["workers"] == 1 and not gpu.is_healthy():
            raise DeviceLost(f"this process cannot use its GPU any more after {line}") from error

    def _progress(self, key: str, epochs: int) -> None:
        self.chalk(epochs)
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
        if self.config["workers"] > 1:  # the team ends with the process that waits for it
            from raylth.stages import Preempted

            raise Preempted("asked to stop; its workers go on from their last saved epoch")

    def _context(self, device: str) -> "Context":
        if device not in self.contexts:
            self.contexts[device] = self.shared.context(device, self.store, self.reader, self._progress, self._must_stop)
        return replace(self.contexts[device], engine=self.config["engine"], note=self._note)

    def _note(self, line: str) -> None:
        self.notes[line] = None
