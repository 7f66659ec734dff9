"""From a sweep's settings to what can be started: plan, checks of networks and disk, and what the store holds."""

from collections.abc import Callable
from dataclasses import dataclass

from raylth.cluster.nodes.budget_meter import Meter
from raylth.cluster.slots import slot_of
from raylth.config.load import BadSweep
from raylth.config.sweep import SweepConfig
from raylth.core.data import Dataset
from raylth.driver.progress import StatusFile
from raylth.driver.run_record import Recorder, Run
from raylth.stages import (
    Forecast,
    Graph,
    Plan,
    check_networks,
    in_units,
    keep_checked,
    load_same_data,
    make_plan,
    scan,
    symmetry_notes,
)
from raylth.store import Store
from raylth.trackers import check_exporters, open_trackers

__all__ = [
    "Prepared",
    "check_places",
    "check_space",
    "check_trackers",
    "in_hours",
    "plan_of",
    "prepare",
    "scan_of",
    "share_of",
    "tried",
]


@dataclass
class Prepared:
    """A sweep that can start: all that was checked, read and opened before anything is trained."""

    plan: Plan
    run: Run
    graph: Graph
    dataset: Dataset | None  # None where there is nothing to train
    networks: list[str]  # that were tried, for `keep_checked`
    recorder: Recorder
    status: StatusFile
    meter: Meter
    is_settled: bool = False  # whether what was settled is recorded
    has_sources: bool = False  # whether the user's own modules are kept
    is_recorded: bool = False  # whether the artefacts that the run needs are

    def keep(self) -> None:
        """Record in the store what was found before the start: the networks that passed, what was settled, the
        user's own modules, and which artefacts the run needs."""
        keep_checked(self.run.store, self.networks)
        self.networks.clear()
        self.is_settled = self.is_settled or self.run.keep_settled()
        self.has_sources = self.has_sources or self.run.keep_sources()
        self.is_recorded = self.is_recorded or self.run.keep_needs(self.plan.stages)

    def update(self, graph: Graph, epochs: int) -> list[str]:
        """Record what has ended, and how far the sweep is; returns messages for people."""
        self.keep()  # only now is the sweep sure to start
        self.recorder.update()
        self.status.update(graph, epochs, self.meter.used)
        return self.recorder.take_notes()


def prepare(
    config: SweepConfig,
    say: Callable[[str], None],
    plan: Plan | None = None,
    run: Run | None = None,
    meter: Meter | None = None,
) -> Prepared:
    """Plan a sweep, try its networks, check its places, read what its store holds and its data; `say` is given notes.

    A search has a plan, a run and a count of its cost of its own. Raises DataError, NewerStore or BadSweep.
    """
    store = Store(config.storage)
    run = run or Run.open(config, store)
    plan = plan or plan_of(run.config)
    _ = run.sources  # read now: modules may be edited before the first stage has ended
    networks = tried(plan, store)
    for line in symmetry_notes(plan):
        say(line)
    check_places(config, store)
    graph = scan_of(plan, store, say)
    dataset = load_same_data(plan, graph, store, say)
    try:
        recorder = Recorder(run, plan, graph)
    except ValueError as error:  # of a tracker that cannot be opened
        raise BadSweep(str(error)) from error
    meter = meter or Meter(config.budget, config.prices, run.folder / "used.json")
    return Prepared(plan, run, graph, dataset, networks, recorder, StatusFile(run.folder), meter)


def share_of(config: SweepConfig) -> Callable[[str], tuple[int, float]]:
    """Return a function: kind of stage -> (cores, GPUs) of all its workers together."""

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


def check_places(config: SweepConfig, store: Store) -> None:
    """Raise BadSweep for exporters that cannot work here, and for a store that cannot be written."""
    try:
        check_exporters(config.log)
    except ValueError as error:
        raise BadSweep(str(error)) from error
    try:
        store.root.check_writable()
    except OSError as error:
        raise BadSweep(f"storage: {config.storage} cannot be written: {error.strerror or error}") from error


def check_trackers(config: SweepConfig, run: str) -> None:
    """Raise BadSweep for a tracker of one's own that cannot be opened, long before its run starts; it is opened for `run`."""
    try:
        open_trackers(config.log, config.name, run)
    except ValueError as error:
        raise BadSweep(str(error)) from error
