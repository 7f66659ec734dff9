"""What a sweep has used of its budget, and whether machines join at all: both poll the machines."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence

from raylth.cluster.address import ClusterError
from raylth.cluster.slots import Nodes, Slot, room
from raylth.config.budget import BudgetConfig, PricesConfig
from raylth.store import Location

__all__ = ["Meter", "Watchdog"]

SAVE_SECONDS = 30.0  # between two writes of what was used


class Meter:
    """Counts the hours of all machines of the cluster while the sweep runs, used or not, and what they cost.

    The count continues from an earlier run of the same sweep: it is kept in a file in the run's folder.
    """

    def __init__(
        self,
        budget: BudgetConfig | None,
        prices: PricesConfig | None,
        file: Location,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget, self.prices, self.file, self.clock = budget or BudgetConfig(), prices, file, clock
        self.gpu_hours = self.usd = 0.0
        with contextlib.suppress(FileNotFoundError):
            self.gpu_hours, self.usd = _used_before(file)
        self.last: tuple[float, Nodes] | None = None
        self.saved_at = float("-inf")

    def tick(self, nodes: Nodes) -> None:
        """Charge for the machines that were there at the last tick, for the time since then."""
        now = self.clock()
        if self.last is not None:
            before, there = self.last
            hours = (now - before) / 3600
            gpus = sum(node.get("GPU", 0.0) for node in there)
            cpus = sum(node.get("CPU", 0.0) for node in there if not node.get("GPU"))
            self.gpu_hours += hours * gpus
            self.usd += hours * self.prices.per_hour(gpus, cpus) if self.prices else 0.0
        self.last = now, nodes
        if now - self.saved_at >= SAVE_SECONDS:
            self.saved_at = now
            self.save()

    def save(self) -> None:
        """Write what was used; a store that does not answer is written to the next time."""
        with contextlib.suppress(OSError):
            self.file.write(json.dumps(self.used).encode())

    @property
    def used(self) -> dict[str, float]:
        """What was used so far, by all runs of the sweep."""
        return {"gpu_hours": round(self.gpu_hours, 4), "usd": round(self.usd, 4)}

    @property
    def exhausted(self) -> str | None:
        """Which budget is used up, None while all last."""
        for name, used, unit in (("gpu_hours", self.gpu_hours, "GPU-hours"), ("usd", self.usd, "USD")):
            most = getattr(self.budget, name)
            if most is not None and used >= most:
                shown = self.used[name]  # rounded once, as status and the file have it
                return f"budget.{name}: {shown:.2f} of {most:g} {unit} are used"
        return None


def _used_before(file: Location) -> tuple[float, float]:
    """Read a count; ClusterError where it is harmed, since a budget may hang on it."""
    try:
        before = json.loads(file.read())
        return float(before["gpu_hours"]), float(before["usd"])
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"budget: {file} is harmed, so the budget used so far is unknown: replace it by "
            '{"gpu_hours": 0, "usd": 0}, with what is true'
        ) from error


class Watchdog:
    """Notices that no machine has joined on which any waiting stage fits."""

    def __init__(
        self, minutes: float, refusals: Callable[[], Mapping[str, str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.patience, self.refusals, self.clock = 60 * minutes, refusals, clock
        self.since = self.next = 0.0
        self.is_silent = False

    def look(self, nodes: Nodes, waiting: Sequence[tuple[str, Slot, int]]) -> str | None:
        """Take in the machines and what is asked of them, as (kind of stage, share, fewest workers).

        Returns a message for the user: after so many minutes in which nothing fitted, and again after twice as many.
        """
        fits = any(room(nodes, slot.cpus, slot.gpus) >= fewest for _, slot, fewest in waiting)
        was_silent, self.is_silent = self.is_silent, bool(waiting) and not fits
        now = self.clock()
        if not was_silent:
            self.since, self.next = now, now + self.patience
        if not self.is_silent or now < self.next:
            return None
        silent = now - self.since
        self.next = now + silent
        kind, slot, _ = waiting[0]
        refused = "; ".join(f"{name}: {why}" for name, why in self.refusals().items())
        return (
            f"no machine with {slot} has joined for {silent / 60:.0f} min ({refused or 'the cloud has refused none'}). "
            f"What else can be asked for: other types or zones in the cluster file (then ray up again), or less: "
            f"resources.{kind}.cpus, resources.{kind}.gpus"
        )
