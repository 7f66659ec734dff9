"""Which share of a machine a stage gets: what the sweep file says, or what was measured, grown where it did not suffice."""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylth.config.resources import ResourcesConfig, Share, TrainingShare
from raylth.config.types import AUTO
from raylth.stages import Stage
from raylth.stages.settings import TrainingSettings
from raylth.store import Store, fingerprint

__all__ = [
    "MARGIN",
    "MOST_TASKS",
    "TASK_RESOURCE",
    "Nodes",
    "Shares",
    "Slot",
    "asks_too_much",
    "how_often",
    "room",
    "share_of_gpu",
    "slot_of",
]

MARGIN = 1.15  # of memory, over what a few steps and an evaluated batch took: the allocator's fragments grow later
TASK_RESOURCE = "raylth_tasks"  # of a Ray of our own, whose driver alone decides what runs
MOST_TASKS = 1_000_000
ASKED_AS = {"CPU": "cpus", "GPU": "gpus"}  # resource -> field of a slot
ROUNDING = 1e-6  # of sums and quotients of shares
Nodes = Sequence[Mapping[str, float]]  # what each machine has
MOST_PER_GPU = 32  # processes on one GPU, whatever its memory


@dataclass(frozen=True)
class Slot:
    """What a trial asks of a machine."""

    cpus: int
    gpus: float
    workers: int = 1  # that train a network together, each with so much

    def __str__(self) -> str:
        each = f"{self.cpus} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")
        return each if self.workers == 1 else f"{self.workers} times {each}"


class Shares:
    """The shares of all stages. `gpus: auto` is settled by what the first stage of a kind of network was seen to take.

    Stages that train the same network with the same batch take the same: the first of them is tried for a few steps with a
    GPU to itself, and begins anew. Other kinds run with a whole GPU until one has ended. What was measured lies in the
    store, so it is measured once for each kind of GPU.
    """

    def __init__(self, resources: ResourcesConfig, store: Store, gpus: list[tuple[str, int]]) -> None:
        self.resources, self.store = resources, store
        self.name, self.total = min(gpus, key=lambda gpu: gpu[1], default=("none", 0))  # the smallest decides
        self.measured: dict[str, int | None] = {}  # class -> bytes
        self.grown: dict[str, Slot] = {}  # stage key -> its slot, where memory ran out

    def of(self, stage: Stage) -> Slot:
        """Return what a stage gets; of a kind that is `auto` and not measured yet, a whole GPU."""
        if stage.key in self.grown:
            return self.grown[stage.key]
        share = self.resources.of(stage.kind)
        if share.gpus != AUTO:
            return slot_of(share)
        taken = self._taken(stage)
        return Slot(share.cpus, 1.0 if taken is None else share_of_gpu(taken, self.total))

    def whole(self, stage: Stage) -> Slot:
        """Return what several of a stage's kind get as one program: a GPU to themselves where the share is `auto`."""
        share = self.resources.of(stage.kind)
        return slot_of(share) if share.gpus == AUTO else self.of(stage)

    def fewest(self, stage: Stage) -> int:
        """Return with how few workers a stage may be trained."""
        share = self.resources.of(stage.kind)
        workers = slot_of(share).workers
        return (share.min_workers or workers) if isinstance(share, TrainingShare) else workers

    def must_be_tried(self, stage: Stage) -> bool:
        """Whether a stage's training is to run a few steps first, to see what it takes."""
        auto = self.resources.of(stage.kind).gpus == AUTO
        return auto and stage.epochs > 0 and stage.key not in self.grown and self._taken(stage) is None

    def learn(self, stage: Stage, taken: int) -> None:
        """Take in the most bytes of GPU memory that a stage took while it had a GPU to itself."""
        if self.resources.of(stage.kind).gpus != AUTO or taken <= (self._taken(stage) or 0):
            return
        what = self._class(stage)
        self.measured[fingerprint(what)] = taken
        with contextlib.suppress(OSError):  # it is known here all the same
            self._file(what).write(json.dumps({**what, "bytes": taken}, indent=1).encode())

    def grow(self, stage: Stage) -> bool:
        """Give a stage that ran out of memory the next larger share; False when it has none of a GPU, or all of it."""
        slot = self.of(stage)
        if slot.gpus in (0, 1):
            return False
        self.grown[stage.key] = Slot(slot.cpus, 1 / (round(1 / slot.gpus) - 1))
        return True

    def same_class(self, first: Stage, second: Stage) -> bool:
        """Whether two stages take the same memory."""
        return self._class(first) == self._class(second)

    def _taken(self, stage: Stage) -> int | None:
        what = self._class(stage)
        name = fingerprint(what)
        if name not in self.measured:
            try:
                self.measured[name] = int(json.loads(self._file(what).read())["bytes"])
            except (OSError, ValueError, KeyError):
                self.measured[name] = None
        return self.measured[name]

    def _class(self, stage: Stage) -> dict[str, Any]:
        settings = stage.settings
        return {
            "kind": "training" if stage.epochs else stage.kind,
            "model": settings.model.plain(),
            "batch_size": settings.recipe.batch_size if isinstance(settings, TrainingSettings) else None,
            "num_train": settings.data.num_train,  # the data set lies on the device, too
            "gpu": self.name,
        }

    def _file(self, what: dict[str, Any]) -> Any:
        return self.store.root / "measured" / f"memory-{fingerprint(what)[:16]}.json"


def slot_of(share: Share) -> Slot:
    """Return what a share asks of a machine, or each of its workers of theirs; with `gpus: auto`, a whole GPU."""
    workers = share.num_workers if isinstance(share, TrainingShare) else 1
    gpus = 1.0 if share.gpus == AUTO else share.gpus
    return Slot(share.cpus, gpus / workers, workers)


def share_of_gpu(taken: int, total: int) -> float:
    """Return the share 1/n of a GPU of `total` bytes that `taken` bytes need, with a margin; at most a whole one."""
    if taken <= 0:
        return 1.0
    return 1 / max(1, min(MOST_PER_GPU, int(total / (MARGIN * taken))))


def how_often(total: float, each: float) -> int:
    """Return how many times a share fits into a total: ten times 1/10 in 1, which floats do not have exactly."""
    return int(total / each + ROUNDING)


def room(nodes: Nodes, cpus: int, gpus: float) -> int:
    """Count the workers that machines have room for."""
    asked = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    return sum(min(how_often(node.get(resource, 0.0), each) for resource, each in asked.items()) for node in nodes)


def asks_too_much(asked: Iterable[tuple[Slot, int]], machines: Mapping[str, float]) -> bool:
    """Return whether these numbers of workers with these slots ask for more than all machines have together."""
    listed = list(asked)
    return any(
        sum(workers * getattr(slot, ASKED_AS[resource]) for slot, workers in listed) > total + ROUNDING
        for resource, total in machines.items()
    )
