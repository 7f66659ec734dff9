"""From a sweep's settings to what can be started: plan, checks of networks and disk, and what the store holds."""

from collections.abc import Callable

from raylth.cluster.slots import slot_of
from raylth.config.load import BadSweep
from raylth.config.sweep import SweepConfig
from raylth.stages import Forecast, Graph, Plan, check_networks, in_units, make_plan, scan
from raylth.store import Store

__all__ = ["check_space", "in_hours", "plan_of", "scan_of", "share_of", "tried"]


def share_of(config: SweepConfig) -> Callable[[str], tuple[int, float]]:
    """Return what tells the cores and GPUs of a kind of stage, of all its workers together."""

    def share(kind: str) -> tuple[int, float]:
        slot = slot_of(config.resources.of(kind))
        return slot.cpus * slot.workers, slot.gpus * slot.workers

    return share


def in_hours(gpus: float, cpus: float) -> str:
    """Write GPU-hours and core-hours for people: "about 3.5 GPU-hours and less than 0.01 core-hours"."""
    parts = [
        f"about {number:{',.0f' if number >= 100 else '.3g'}} {unit}" if number >= 0.01 else f"less than 0.01 {unit}"
        for number, unit in ((gpus, "GPU-hours"), (cpus, "core-hours"))
        if number
    ]
    return " and ".join(parts) or "no time"


def plan_of(config: SweepConfig) -> Plan:
    """Return a sweep's plan; BadSweep for one that cannot be."""
    try:
        return make_plan(config)
    except ValueError as error:
        raise BadSweep(str(error)) from error


def tried(plan: Plan, store: Store) -> list[str]:
    """Try a plan's networks (`check_networks`); BadSweep for what cannot be."""
    try:
        return check_networks(plan, store)
    except ValueError as error:
        raise BadSweep(str(error)) from error
    except OSError as error:
        raise BadSweep(f"storage: {plan.config.storage} cannot be read: {error.strerror or error}") from error


def check_space(config: SweepConfig, ahead: Forecast, free: int | None) -> None:
    """Raise BadSweep when the disk cannot hold what the sweep will write."""
    if free is not None and ahead.storage > free:
        raise BadSweep(
            f"storage: {config.storage}: the sweep writes about {in_units(ahead.storage)} and {in_units(free)} are free: "
            f"{in_units(ahead.storage - free)} ({ahead.storage - free:,} bytes) are missing"
        )


def scan_of(plan: Plan, store: Store, note: Callable[[str], None]) -> Graph:
    """Return which stages of a plan the store holds; BadSweep for a store that cannot be read."""
    try:
        return scan(plan, store, note)
    except OSError as error:
        raise BadSweep(f"storage: {plan.config.storage} cannot be read: {error.strerror or error}") from error
