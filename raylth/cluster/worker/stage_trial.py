"""The Tune trial: a worker that is handed one training's key after another, or a pack of them."""

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ray import tune

from raylth.cluster.worker import gpu
from raylth.cluster.worker.payload import Shared, Work
from raylth.cluster.worker.stage_runner import StageRunner
from raylth.store import Lease

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


class StageTrial(StageRunner, tune.Trainable):
    """Runs the stages of the `Work` that its configuration is. The process stays for the next trial (`reuse_actors`)."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Ask for what the stage's share of a machine is. A team's workers ask for theirs when they are started."""
        if config["workers"] > 1:
            return tune.PlacementGroupFactory([{"memory": 1}])  # a byte: next to nothing, which Tune does not take
        return tune.PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]  # with_parameters adds it
        """Take the handles; data and torch come with the first stage."""
        self.begin(shared)
        self.work = Work(**config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next stage into the same process."""
        self.config, self.work = new_config, Work(**new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run the stages, one after another. A stage's error is a result, not the end of the worker."""
        with self.working():
            keys, tries = self.work.stages, Tries()
            if self.work.measure:  # then its stage is run with others, as many together as this finds
                outcomes = [{"outcome": "tried", **self._measure(self.work.measure)}]
            else:
                outcomes = self._run_pack(keys, tries) if self.work.pack else [self.run_one(key) for key in keys]
            return {"done": True, "outcomes": outcomes, "notes": list(self.notes), **tries.found()}

    def _run_pack(self, keys: list[str], tries: "Tries") -> list[dict[str, Any]]:
        """Train stages that are alike as one program, and those that run out of memory in halves, down to one by itself.

        Returns what the searcher is to know of each.
        """
        from raylth.core.training.packing import NotPackable
        from raylth.stages import Preempted

        if len(keys) == 1:
            return [self.run_one(keys[0])]
        if self.is_asked_to_stop:
            raise Preempted("asked to stop between two packs")
        try:
            results = self._run_together(keys)
        except NotPackable:
            return [self.run_one(key) for key in keys]
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
                outcomes = run_together(held, self._context(gpu.device(self.work.gpus))) if held else []
            except NotPackable:
                raise
            except Exception as error:  # of all; a training that must stop is saved, and starts elsewhere
                if self.is_asked_to_stop:
                    raise
                outcomes = [error] * len(held)
            finally:
                self.epochs_trained.flush()
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
        context = self._context(gpu.device(self.work.gpus))
        try:
            found = fastest_pack(
                lambda: new_network(settings.model, 0, context.device),
                context.train,
                settings.recipe,
                settings.augment,
                engines=self.work.engines,
                sizes=self.work.sizes or SIZES,
            )
        except Exception as error:  # the stage itself will say what is wrong
            found = Fastest(1)
            self._recover(error)
        for line in found.notes:
            self.notes[line] = None
        return {"pack_size": found.size, "pack_engine": found.engine, "pack_rates": found.rates}
