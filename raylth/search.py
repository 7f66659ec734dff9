"""A sweep with `search`: each arm's best settings, found on a holdout, then the arms at theirs, with fresh seeds."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from raylth.analyses import AnalysesConfig
from raylth.cluster.address import Joining
from raylth.cluster.meter import Meter
from raylth.config import SweepConfig
from raylth.dryrun import plan_of, scan_of, share_of, tried
from raylth.progress import StatusFile
from raylth.runner import EXIT_BUDGET, EXIT_FAILED, EXIT_INTERRUPTED, check_places, compute, run_sweep
from raylth.runs import NOT_SCIENCE, Run
from raylth.settings import changed
from raylth.stages import Graph, Plan, Stage, hours, load_data
from raylth.store import Lease, Location, Store, fingerprint
from raylth.store.location import DiskLocation
from raylth.sweepfile import BadSweep

if TYPE_CHECKING:
    from raylth.cluster.study import Study

__all__ = ["final_of", "judged_by", "run_search", "what_is_searched"]

JOURNAL, SUMMARY = "studies.log", "search.json"
SECTIONS = ("dense", "imp", "match", "sparse", "model")  # whose settings can be looked for
Winner = tuple[list[str], dict[str, Any]]  # arms, and the settings at which they were best


def run_search(config: SweepConfig, command: Sequence[str], joining: Joining) -> int:
    """Search, then run the winners; returns the exit status. The same command goes on where it was stopped.

    Raises BadSweep, DataError or ClusterError before anything is trained.
    """
    console, store = Console(), Store(config.storage)
    judged = judged_by(config)
    _check_space(judged)
    check_places(config, store)
    identity = _fingerprint(judged)
    folder = store.root / "searches" / f"{config.name}-{identity[:8]}"
    meter = Meter(config.budget, config.prices, folder / "used.json")
    with Lease(store, identity) as lease, _journal(folder) as (journal, kept):
        if not lease.held:
            raise BadSweep(f"search: another process is at this search already ({folder}); let it end, or end it")
        try:
            studies = _search(judged, Run(judged, store, folder.name), journal, kept, console, command, joining, meter)
        except KeyboardInterrupt:
            console.print("\nstopped: what was tried is kept; the same command goes on", highlight=False)
            return EXIT_INTERRUPTED
    if meter.exhausted and any(len(study.ended()) < study.search.trials for study in studies):
        console.print(f"{meter.exhausted}; raise it, and the same command goes on", highlight=False, soft_wrap=True)
        return EXIT_BUDGET
    winners = [(study.arms, trial.params) for study in studies for trial in study.winners()]
    for study in studies:
        if not study.winners():
            console.print(f"{study.name}: no training went to its end, so nothing is best; see search.stop", style="red")
            return EXIT_FAILED
    final = final_of(config)
    plan = _plan_of_winners(final, winners)
    name = f"{config.name}-{fingerprint([_science(final), winners])[:8]}"
    run = Run(final, store, name)
    (run.folder / SUMMARY).write(json.dumps(_summary(studies), indent=1).encode())
    return run_sweep(final, command, joining, plan, run, meter)


def judged_by(config: SweepConfig) -> SweepConfig:
    """Return the settings by which trials are judged: on the holdout, with the search's number of pairs."""
    search = config.search
    assert search is not None
    bare = _bare(config)
    try:
        return changed(bare, {"data.holdout": search.holdout, "seeds.replicates": search.replicates})
    except ValueError as error:
        raise BadSweep(f"search.holdout: {_line(error)}") from error


def final_of(config: SweepConfig) -> SweepConfig:
    """Return the settings of the runs by which the winners are judged: fresh seeds, the test split."""
    search = config.search
    assert search is not None
    return changed(_bare(config), {"seeds.base": search.final.base, "seeds.replicates": search.final.replicates})


def _bare(config: SweepConfig) -> SweepConfig:
    """Refuse what would have to be computed for each trial, whose arms are alone; BadSweep."""
    if config.analyses != AnalysesConfig() or config.connect is not None:
        section = "analyses" if config.connect is None else "connect"
        raise BadSweep(
            f"{section}: not together with search, whose arms have settings of their own; run the winners as a sweep"
        )
    if config.resources.sparse.num_workers > 1:
        raise BadSweep("resources.sparse: several workers for one network, which a search does not do: 1 GPU at most")
    return config


def what_is_searched(config: SweepConfig) -> str:
    """Say in a line what a search does before the networks that a plan of its winners has."""
    search = config.search
    assert search is not None
    _check_space(judged_by(config))
    judged, store = judged_by(config), Store(config.storage)
    plan = plan_of(judged)
    shared, arms = (
        Plan(judged, tuple(stage for stage in plan.stages if (stage.kind == "sparse") == is_arm)) for is_arm in (False, True)
    )
    graph = scan_of(plan, store, print)
    studies = 1 if search.arms == "shared" else len(config.sparse.arms)
    epochs = [sum(stage.epochs for stage in part.stages) for part in (shared, arms)]
    first, each = (hours(part, graph, store, share_of(config)) for part in (shared, arms))
    parts = [
        f"{number:,.3g} {unit}"
        for number, unit in (
            (first.gpus + search.trials * each.gpus, "GPU-hours"),
            (first.cpus + search.trials * each.cpus, "core-hours"),
        )
        if number
    ]
    return (
        f"the plan is that of the winners; before it a search of {studies} x {search.trials} trials, of about "
        f"{epochs[0] + search.trials * epochs[1]:,} epochs and {' and '.join(parts) or 'no time'} where none is stopped, "
        f"on {search.holdout:,} held-out training samples"
    )


def _check_space(config: SweepConfig) -> None:
    """Try every setting of the space at its ends, and all points to start at; BadSweep for what no sweep could be."""
    search = config.search
    assert search is not None
    tried(plan_of(config), Store(config.storage))
    points = [({name: value}, f"search.space.{name}") for name, space in search.space.items() for value in space.ends]
    points += [(point, "search.start") for point in search.start or []]
    for point, where in points:
        for name in point:
            if name.split(".")[0] not in SECTIONS:
                raise BadSweep(f"search.space: {name} is no setting that a search can change ({', '.join(SECTIONS)})")
        try:
            tried(plan_of(changed(config, point)), Store(config.storage))
        except ValueError as error:
            raise BadSweep(f"{where}: {point}: {_line(error)}") from error
    from raylth.cluster.study import check_sampler, first_points

    try:
        check_sampler(search)
        first_points(config)
    except ValueError as error:
        raise BadSweep(str(error)) from error


def _search(
    config: SweepConfig,
    run: Run,
    journal: Path,
    kept: Callable[[], None],
    console: Console,
    command: Sequence[str],
    joining: Joining,
    meter: Meter,
) -> "list[Study]":
    """Compute what all trials share, then run what is left of every study."""
    from raylth.cluster.capacity import machines
    from raylth.cluster.launch import check_shares, joined
    from raylth.cluster.point import Given
    from raylth.cluster.preflight import versions
    from raylth.cluster.study import Study, search_on_ray

    search = config.search
    assert search is not None
    groups = [config.sparse.arms] if search.arms == "shared" else [[arm] for arm in config.sparse.arms]
    studies = [Study("shared" if search.arms == "shared" else arms[0], list(arms), config, journal) for arms in groups]
    left = {study.name: search.trials - len(study.ended()) for study in studies}
    if meter.exhausted or not any(number > 0 for number in left.values()):
        return studies
    dataset = load_data(config.data, config.resources.staging)
    whole = plan_of(config)
    shared = Plan(config, tuple(stage for stage in whole.stages if stage.kind in ("dense", "imp", "mask", "match")))
    graph = scan_of(shared, run.store, lambda line: console.print(Text(line, style="yellow")))
    status = StatusFile(run.folder)

    def also(graph: Graph, epochs: int) -> list[str]:
        status.update(graph, epochs, meter.used)
        return []

    if not graph.finished:
        compute(shared, graph, run, dataset, console, command, joining, meter, also)
    with joined(joining) as ray, tempfile.TemporaryDirectory(prefix="raylth-search-") as scratch:
        every = search.stops.grace_epochs if search.stops else config.log.evaluate_every
        settings = config.model_dump(mode="json")
        given = Given(str(run.store.root.absolute()), settings, [ray.put(dataset)], dataset.fingerprint(), every, versions())

        def told(line: str) -> None:
            kept()
            status.update(graph, 0, meter.used, note=line)
            console.print(line, highlight=False, soft_wrap=True)

        check_shares(config.resources, machines())
        for study in studies:
            if left[study.name] > 0 and not meter.exhausted:
                search_on_ray(study, given, left[study.name], told, scratch, meter, None if joining.is_local else machines())
    status.update(graph, 0, meter.used, state="finished")
    return studies


def _plan_of_winners(config: SweepConfig, winners: Sequence[Winner]) -> Plan:
    """Plan every winner's arms at its settings; what they share is there once."""
    plans = [plan_of(changed(config, {**params, "sparse.arms": arms})) for arms, params in winners]
    stages: dict[str, Stage] = {}
    for stage in (stage for plan in plans for stage in plan.stages):
        before = stages.get(stage.key, stage)  # arms ask one dense network for different checkpoints
        stages[stage.key] = replace(stage, checkpoints={**before.checkpoints, **stage.checkpoints})
    order = {kind: number for number, kind in enumerate(dict.fromkeys(stage.kind for stage in plan_of(config).stages))}
    return Plan(config, tuple(sorted(stages.values(), key=lambda stage: order[stage.kind])))


def _summary(studies: "Sequence[Study]") -> dict[str, Any]:
    """Return what was tried, as the report reads it."""
    search = studies[0].search
    found = []
    for study in studies:
        best = {trial.number for trial in study.winners()}
        trials = [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "is_best": trial.number in best,
                "params": trial.params,
                "values": dict(zip(search.objectives, trial.values or [], strict=False)),
            }
            for trial in study.ended()
        ]
        found.append({"study": study.name, "trials": trials})
    return {"holdout": search.holdout, "objectives": list(search.objectives), "studies": found}


@contextlib.contextmanager
def _journal(folder: Location) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Give the studies' journal as a file, and what keeps it: nothing on a disk, a copy to the bucket elsewhere."""
    if isinstance(folder, DiskLocation):
        folder.path.mkdir(parents=True, exist_ok=True)
        yield folder.path / JOURNAL, lambda: None
        return
    with tempfile.TemporaryDirectory(prefix="raylth-journal-") as scratch:
        file = Path(scratch) / JOURNAL
        with contextlib.suppress(FileNotFoundError):
            file.write_bytes((folder / JOURNAL).read())

        def keep() -> None:
            with contextlib.suppress(OSError):  # written with the next one
                (folder / JOURNAL).write(file.read_bytes())

        try:
            yield file, keep
        finally:
            if file.exists() and os.path.getsize(file):
                keep()


def _science(config: SweepConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=NOT_SCIENCE)  # type: ignore[arg-type]


def _fingerprint(config: SweepConfig) -> str:
    """Tell searches apart whose trials could not be compared; more trials of the same are the same search.

    The keys of the stages tell of a network's code and a mask's bytes, too.
    """
    assert config.search is not None
    search = config.search.model_dump(mode="json", exclude={"trials", "concurrent", "final", "sampler", "start"})
    return fingerprint([_science(config), search, sorted(stage.key for stage in plan_of(config).stages)])


def _line(error: ValueError) -> str:
    """Return what is wrong in one line, also of pydantic's errors."""
    details: Any = getattr(error, "errors", None)
    return "; ".join(str(detail["msg"]) for detail in details()) if details else " ".join(str(error).split())
