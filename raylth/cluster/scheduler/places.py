"""Where tasks run: the share of the machines that each holds in Ray's books, and for how long.

On a Ray of our own the driver alone decides what runs, and counts cores itself: in Ray's books a worker that waits for its
next training keeps its share, and would have to be ended for a task of a second. On a cluster that others may use, and
wherever a share of a GPU is asked for, a task runs in a placement group with one bundle. It is kept for the next task,
since making one may mean ending an idle worker, and a new process imports torch and opens the GPU anew.
"""

import contextlib
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylth.cluster.slots import TASK_RESOURCE, Slot
from raylth.cluster.worker.stage_task import end_process

__all__ = ["Place", "Places"]

KEPT_SECONDS = 5.0  # without a task; trainings wait for what it holds
SHORT_SECONDS = 1.0  # that a place may take to be made before an idle worker is ended for it
LEAVING_SECONDS = 10.0  # for its process to end
PLACE_VARIABLE = "RAYLTH_PLACE"  # processes with unlike environments are not interchanged by Ray

MADE, FREE, USED, LEFT = "made", "free", "used", "left"


@dataclass(eq=False)
class Place:
    """Room for one task at a time. `options` are what Ray is given with the task."""

    kind: str
    slot: Slot
    options: Mapping[str, Any]
    group: Any = None
    state: str = MADE
    awaited: Any = None  # reference: the group stands, or its process has ended
    since: float = field(default_factory=time.monotonic)  # in this state
    is_lost: bool = False  # its machine is gone, and Ray makes it anew elsewhere when there is room

    def becomes(self, state: str, awaited: Any = None) -> None:
        """Change the state."""
        self.state, self.awaited, self.since = state, awaited, time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the place has been in its state."""
        return time.monotonic() - self.since


class Places:
    """The places of a run's tasks."""

    def __init__(self, *, is_local: bool) -> None:
        self.is_local = is_local
        self.places: list[Place] = []
        self.numbers = itertools.count()
        self.end_process = ray.remote(max_retries=0)(end_process)
        self.short_since = self.looked_at = float("-inf")

    def take(self, kind: str, slot: Slot) -> Place | None:
        """Return a place for a task with this share; None while it is being made."""
        if self.is_local and not slot.gpus:
            place = Place(kind, slot, {"num_cpus": 0, "resources": {TASK_RESOURCE: 1}}, state=USED)
            self.places.append(place)
            return place
        alike = [place for place in self.places if place.slot == slot]
        for place in alike:
            if place.state == FREE and not place.is_lost:
                place.kind = kind
                place.becomes(USED)
                return place
        if not any(place.state == MADE for place in alike):
            for place in list(self.places):  # what they hold may be what is missing
                if place.state == FREE:
                    self._leave(place)
            self._make(kind, slot)
        return None

    def give_back(self, place: Place, *, is_sound: bool = True) -> None:
        """Take in that a place's task has ended; `is_sound`: its process and machine may be used again."""
        if place.group is None:
            self.places.remove(place)
        elif is_sound:
            place.becomes(FREE)
        else:
            self._leave(place)

    def turn(self) -> None:
        """See which places stand now, and leave those that were not used for a while."""
        if time.monotonic() - self.looked_at > SHORT_SECONDS:
            self.looked_at = time.monotonic()
            for place in self.places:
                if place.state in (FREE, USED) and place.group is not None:
                    place.is_lost = placement_group_table(place.group).get("state") != "CREATED"
        for place in list(self.places):
            if place.state == FREE and place.seconds > KEPT_SECONDS:
                self._leave(place)
            elif place.state == LEFT and place.seconds > LEAVING_SECONDS:
                self._remove(place)  # its machine is gone, and there is none on which Ray could make it anew
            elif place.awaited is not None and ray.wait([place.awaited], timeout=0)[0]:
                if place.state == MADE:
                    place.becomes(FREE)
                else:
                    self._remove(place)

    def held(self) -> list[tuple[str, Slot]]:
        """Return what the places hold, or wait for: kind of stage, and share."""
        return [(place.kind, place.slot) for place in self.places]

    def busy(self) -> list[Slot]:
        """Return the shares of the places at which tasks run."""
        return [place.slot for place in self.places if place.state == USED]

    def is_made(self) -> bool:
        """Whether a place is being made."""
        return any(place.state == MADE for place in self.places)

    def waiting(self) -> list[Place]:
        """Return the places that wait for room."""
        made = [place for place in self.places if place.state == MADE and place.seconds >= SHORT_SECONDS]
        lost = [place for place in self.places if place.state == USED and place.is_lost]
        return made + lost

    def is_short(self) -> bool:
        """Whether an idle worker is to be ended for a place that waits for room: True once a second."""
        if not self.waiting() or time.monotonic() - self.short_since < SHORT_SECONDS:
            return False
        self.short_since = time.monotonic()
        return True

    def close(self) -> None:
        """Give everything back."""
        for place in list(self.places):
            with contextlib.suppress(ray.exceptions.RayError):
                self._remove(place)

    def _make(self, kind: str, slot: Slot) -> None:
        bundle = {"CPU": float(slot.cpus)} | ({"GPU": slot.gpus} if slot.gpus else {})
        group = placement_group([bundle])
        options: dict[str, Any] = {
            "num_cpus": slot.cpus,
            "num_gpus": slot.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        }
        if slot.gpus:  # a process that has opened one GPU sees no other, where a later place may have it
            options["runtime_env"] = {"env_vars": {PLACE_VARIABLE: str(next(self.numbers))}}
        self.places.append(Place(kind, slot, options, group, awaited=group.ready()))

    def _leave(self, place: Place) -> None:
        """Give a place back; its process is ended first where it holds memory of a GPU."""
        if place.slot.gpus:
            place.becomes(LEFT, self.end_process.options(**place.options).remote())
        else:
            self._remove(place)

    def _remove(self, place: Place) -> None:
        self.places.remove(place)
        if place.group is not None:
            remove_placement_group(place.group)
