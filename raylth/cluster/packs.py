"""Which trainings go together in one program, and how many."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from raylth.cluster.shares import Slot, how_often
from raylth.resources import ResourcesConfig
from raylth.stages import Stage
from raylth.store import Store, fingerprint
from raylth.values import AUTO, OFF

__all__ = ["Packs"]

PROCEDURE = 3  # of measuring; what another one found is not used


class Packs:
    """How many networks a worker trains as one program: what the sweep file says, or what was measured to be fastest.

    Trainings go together that are alike in all settings but seeds and masks. What was measured lies in the store, so it is
    measured once for each network, batch and device.
    """

    ALIKE = ("model", "data", "augment", "recipe", "prune_shortcuts")

    def __init__(self, resources: ResourcesConfig, store: Store, device: str, machines: Mapping[str, float]) -> None:
        self.asked, self.store, self.device, self.machines = resources.pack, store, device, machines
        self.measured: dict[str, int | None] = {}  # class -> size
        self.measuring: set[str] = set()  # classes at which a worker is, or was

    def size(self, stage: Stage, slot: Slot) -> int | None:
        """Return how many networks like a stage's to train together; None when that has to be measured."""
        if self.asked == OFF or not stage.epochs:
            return 1
        if self.asked != AUTO:
            return int(self.asked)
        what = self._class(stage, slot)
        name = fingerprint(what)
        if self.measured.get(name) is None:
            try:
                self.measured[name] = int(json.loads(self._file(what).read())["size"])
            except (OSError, ValueError, KeyError):
                self.measured[name] = None
        return self.measured[name]

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
        if for_good:
            self.measured[name] = 1
        else:
            self.measuring.discard(name)

    def same_class(self, first: Stage, slot: Slot, second: Stage, other: Slot) -> bool:
        """Whether what is measured for one training holds for another."""
        return self._class(first, slot) == self._class(second, other)

    def example(self, alike: Iterable[Stage]) -> Stage:
        """Return the one of a class's trainings by which it is to be measured: in the arithmetic of most of their epochs."""
        epochs: Counter[str | None] = Counter()
        first: dict[str | None, Stage] = {}
        for stage in alike:
            precision = stage.settings["recipe"].get("precision")
            first.setdefault(precision, stage)
            epochs[precision] += stage.epochs
        return first[max(epochs, key=lambda precision: epochs[precision])]

    def learn(self, stage: Stage, slot: Slot, size: int, rates: Mapping[int, float]) -> None:
        """Take in what a worker measured: the fastest size, and samples per second by size."""
        what = self._class(stage, slot)
        self.measured[fingerprint(what)] = size
        per_second = {str(tried): round(rate, 1) for tried, rate in rates.items()}
        self._file(what).write(json.dumps({**what, "size": size, "samples_per_second": per_second}, indent=1).encode())

    def are_alike(self, first: Stage, second: Stage) -> bool:
        """Whether two trainings can run as one program."""
        same = all(first.settings.get(name) == second.settings.get(name) for name in self.ALIKE)
        return first.kind == second.kind and first.epochs > 0 and same

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
        recipe = stage.settings["recipe"]
        return {"model": stage.settings["model"], "batch_size": recipe["batch_size"], "device": device, "by": PROCEDURE}

    def _file(self, what: dict[str, Any]) -> Any:
        return self.store.root / "measured" / f"pack-{fingerprint(what)[:16]}.json"
