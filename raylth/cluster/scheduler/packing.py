"""Which trainings go together in one program, how many, and by which engine."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from raylth.cluster.slots import Slot, how_often
from raylth.config.resources import ResourcesConfig
from raylth.config.types import AUTO, OFF, EngineSetting
from raylth.stages import Stage
from raylth.stages.settings import TrainingSettings
from raylth.store import Store, fingerprint

__all__ = ["Packs"]

ENGINES = tuple(name for name in get_args(EngineSetting) if name != AUTO)
PROCEDURE = 4  # of measuring; what another one found is not used


class Packs:
    """How many networks a worker trains as one program: what the sweep file says, or what was measured to be fastest.

    Trainings go together that are alike in all settings but seeds and masks. What was measured lies in the store, so it is
    measured once for each network, batch and device, and so is the engine on a GPU, for which the sweep file's own size is
    measured, too. So does how many fit where a pack ran out of memory; the size that the sweep file says is limited by that,
    too, within a run.
    """

    def __init__(self, resources: ResourcesConfig, store: Store, device: str, machines: Mapping[str, float]) -> None:
        self.asked, self.store, self.device, self.machines = resources.pack, store, device, machines
        self.asked_engine = resources.engine
        self.measured: dict[str, int | None] = {}  # class -> size
        self.engines: dict[str, str] = {}  # class -> the fastest engine
        self.measuring: set[str] = set()  # classes at which a worker is, or was
        self.fits: dict[str, int] = {}  # class -> how many fit in memory, where more did not
        self.reported: set[str] = set()
        # Classes whose measuring ended a process: only engines of torch's own kernels are tried.
        self.careful: set[str] = set()
        self.suspects: dict[str, int] = {}  # stage key -> the largest pack that it may be in, after a larger one crashed

    def size(self, stage: Stage, slot: Slot) -> int | None:
        """Return how many networks like a stage's to train together; None when that has to be measured."""
        if not stage.epochs:
            return 1
        what = self._class(stage, slot)
        name = fingerprint(what)
        found = self._measured(what) if self._is_measured(slot) else self._fixed
        return found and min(found, self.fits.get(name, found), self.suspects.get(stage.key, found))

    def engine(self, stage: Stage, slot: Slot) -> str:
        """Return the engine that trains a stage: the one that is asked for, or on a GPU the one measured to be fastest."""
        if self.asked_engine != AUTO or not stage.epochs or not self._is_measured(slot):
            return "eager" if self.asked_engine == AUTO else self.asked_engine
        what = self._class(stage, slot)
        self._measured(what)
        return self.engines.get(fingerprint(what), "eager")

    def to_measure(self, stage: Stage, slot: Slot) -> dict[str, Any]:
        """Return what a worker is to measure: which sizes, None for any, and by which engines."""
        engines = [self.asked_engine]
        if self.asked_engine == AUTO:
            is_careful = fingerprint(self._class(stage, slot)) in self.careful
            engines = ["eager"] if not slot.gpus else ["eager", "graph"] if is_careful else list(ENGINES)
        return {"sizes": None if self.asked == AUTO else [self._fixed], "engines": engines}

    @property
    def _fixed(self) -> int:
        return 1 if self.asked in (AUTO, OFF) else int(self.asked)

    def _is_measured(self, slot: Slot) -> bool:
        return self.asked == AUTO or (slot.gpus > 0 and slot.workers == 1 and self.asked_engine == AUTO)

    def _measured(self, what: dict[str, Any]) -> int | None:
        """Return the size that was measured for a class, by this run or an earlier one."""
        name = fingerprint(what)
        if self.measured.get(name) is None:
            self.measured[name] = None
            with contextlib.suppress(OSError, ValueError, KeyError):
                found = json.loads(self._file(what).read())
                self.measured[name], self.engines[name] = int(found["size"]), str(found["engine"])
                if "fits" in found:
                    self.fits[name] = min(int(found["fits"]), self.fits.get(name, int(found["fits"])))
        return self.measured[name]

    def news(self, lines: Iterable[str]) -> list[str]:
        """Return the lines about engines that were not reported yet; each worker sends its own."""
        new = [line for line in lines if line not in self.reported]
        self.reported.update(new)
        return new

    def ran_out(self, stage: Stage, slot: Slot, size: int, fits: int, *, killed: bool = False) -> list[str]:
        """Record that a pack of `size` ran out of memory, and how many fit; returns the lines to report.

        That is written beside what was measured, and later runs read it, unless it holds for this run only: where the worker
        was killed for its machine's memory, which others may have filled, or had a part of a GPU, which the file does not
        tell from a whole one.
        """
        what = self._class(stage, slot)
        name = fingerprint(what)
        if fits >= self.fits.get(name, fits + 1):
            return []
        self.fits[name] = fits
        if self.asked == AUTO and slot.gpus in (0, 1) and not killed:
            with contextlib.suppress(OSError, ValueError):  # it is known here all the same
                self._file(what).write(json.dumps({**json.loads(self._file(what).read()), "fits": fits}, indent=1).encode())
        memory = "GPU memory" if slot.gpus and not killed else "memory"
        return [f"a pack of {size} ran out of {memory}; packs of at most {fits} from now on"]

    def crashed(self, stages: Sequence[Stage], size: int, why: str) -> list[str]:
        """Record that the worker of a pack died, and which stages it has left; returns the lines to report.

        Any of them may have been what ended it, an illegal memory access for instance, so none counts as having crashed:
        half as many run together the next time, and half of that after another crash. One that crashes its process is by
        itself in the end, where it counts. All alone at once would train the innocent at a fraction of their speed, most of
        all after a crash that no stage caused, as when a machine is lost.
        """
        most = max(1, size // 2)
        for stage in stages:
            self.suspects[stage.key] = min(most, self.suspects.get(stage.key, most))
        return [f"a pack of {size}: its worker process died; restarted in packs of at most {most}: {why}"] if stages else []

    def must_be_measured(self, stage: Stage, slot: Slot) -> bool:
        """Whether a worker is to measure first: once for a class, the others of it run alone meanwhile."""
        if self.size(stage, slot) is not None:
            return False
        name = fingerprint(self._class(stage, slot))
        is_first = name not in self.measuring
        self.measuring.add(name)
        return is_first

    def forget(self, stage: Stage, slot: Slot, *, for_good: bool) -> None:
        """Take in that a worker ended while it measured: it is measured again, or its like run alone from now on."""
        name = fingerprint(self._class(stage, slot))
        if for_good and (name in self.careful or self.asked_engine != AUTO or not slot.gpus):
            self.measured[name] = 1
            return
        if for_good:  # an engine of our own kernels may have ended it
            self.careful.add(name)
        self.measuring.discard(name)

    def same_class(self, first: Stage, slot: Slot, second: Stage, other: Slot) -> bool:
        """Whether what is measured for one training holds for another."""
        return self._class(first, slot) == self._class(second, other)

    def example(self, alike: Iterable[Stage]) -> Stage:
        """Return the one of a class's trainings by which it is to be measured: in the arithmetic of most of their epochs."""
        epochs: Counter[str] = Counter()
        first: dict[str, Stage] = {}
        for stage in alike:
            precision = _training(stage).recipe.precision
            first.setdefault(precision, stage)
            epochs[precision] += stage.epochs
        return first[max(epochs, key=lambda precision: epochs[precision])]

    def learn(
        self, stage: Stage, slot: Slot, size: int, rates: Mapping[str, Mapping[int, float]], engine: str = "eager"
    ) -> None:
        """Take in what a worker measured: the fastest size and engine, and samples per second by engine and size."""
        what = self._class(stage, slot)
        name = fingerprint(what)
        self.measured[name], self.engines[name] = size, engine
        per_second = {by: {str(tried): round(rate, 1) for tried, rate in each.items()} for by, each in rates.items()}
        found = {**what, "size": size, "engine": engine, "samples_per_second": per_second}
        fits = self.fits.get(name)
        with contextlib.suppress(OSError):  # it is known here all the same
            self._file(what).write(json.dumps(found if fits is None else {**found, "fits": fits}, indent=1).encode())

    def go_together(self, first: Stage, second: Stage, size: int) -> bool:
        """Whether two trainings can be members of one program of that size."""
        if not isinstance(first.settings, TrainingSettings) or not isinstance(second.settings, TrainingSettings):
            return False
        same = first.kind == second.kind and first.settings.program == second.settings.program
        return same and self.suspects.get(second.key, size) >= size

    def room(self, slot: Slot) -> int:
        """Return how many such slots all machines have, at least one."""
        total, each = (self.machines.get("GPU", 0.0), slot.gpus) if slot.gpus else (self.machines.get("CPU", 1.0), slot.cpus)
        return max(1, how_often(total, each * slot.workers))

    def share(self, slot: Slot, size: int, num_alike: int, num_left: float) -> int:
        """Return how many of `num_alike` trainings one worker takes now, at most `size`, so that all end at the same time.

        `num_left` is the work of all trainings that may run or do run, in trainings like these. It is dealt out in as few
        rounds as there must be, and those that are alike in equal parts but for the last round, where a worker takes what is
        fair beside what the others still have: no worker is left with one small pack at the end.
        """
        workers = self.room(slot)
        rounds = max(1, math.ceil(num_left / (workers * size)))
        most = min(size, max(1, math.ceil(num_left / (workers * rounds))))
        return min(most, num_alike) if rounds == 1 else math.ceil(num_alike / math.ceil(num_alike / most))

    def _class(self, stage: Stage, slot: Slot) -> dict[str, Any]:
        device = self.device if slot.gpus else f"{slot.cpus} CPU"
        settings = _training(stage)
        batch_size = settings.recipe.batch_size
        what = {"model": settings.model.plain(), "batch_size": batch_size, "device": device, "by": PROCEDURE}
        if self.asked != AUTO:
            what["sizes"] = [self._fixed]
        return what if self.asked_engine == AUTO else {**what, "asked_engine": self.asked_engine}

    def _file(self, what: dict[str, Any]) -> Any:
        return self.store.root / "measured" / f"pack-{fingerprint(what)[:16]}.json"


def _training(stage: Stage) -> TrainingSettings:
    assert isinstance(stage.settings, TrainingSettings), f"{stage.name} is not a training"
    return stage.settings
