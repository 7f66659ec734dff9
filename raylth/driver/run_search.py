"""A sweep with `search`: each arm's best settings, found on a holdout, then the arms at theirs, with fresh seeds."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from raylth.cluster.address import Joining
from raylth.cluster.nodes.budget_meter import Meter
from raylth.common import signals
from raylth.common.exit_codes import ExitCode
from raylth.config.analyses import AnalysesConfig
from raylth.config.load import BadSweep
from raylth.config.overrides import changed
from raylth.config.search import judging_base
from raylth.config.sweep import SweepConfig
from raylth.config.types import AUTO
from raylth.core.data import Dataset
from raylth.driver.compute import compute
from raylth.driver.prepare import check_places, check_trackers, in_hours, plan_of, scan_of, share_of, tried
from raylth.driver.progress import StatusFile
from raylth.driver.run_record import Run
from raylth.driver.run_sweep import run_sweep
from raylth.driver.study_journal import opened_journal
from raylth.driver.winners import SUMMARY, Winner, joined_plan, plan_of_winners, summary_of, winners_of
from raylth.stages import MOST_STAGES, Graph, Plan, check_same_data, hours, keep_checked, kind_of, load_data
from raylth.store import Lease, Store, fingerprint

if TYPE_CHECKING:
    from raylth.cluster.search.study import Study

__all__ = ["final_of", "judged_by", "run_search", "what_is_searched"]

SECTIONS = ("dense", "imp", "match", "sparse", "model")  # whose settings can be looked for
OF_THE_SAME_SEARCH = {"trials", "repeats", "concurrent", "final", "sampler", "start"}  # settings that may change on the way


def run_search(config: SweepConfig, command: Sequence[str], joining: Joining) -> int:
    """Search, then run the winners; returns the exit status. The same command continues where it was stopped.

    Raises BadSweep, DataError or ClusterError before anything is trained.
    """
    console, store = Console(), Store(config.storage)
    written = Run.open(config, store)
    config = written.config
    assert config.search is not None
    repeats = [judged_by(config, repeat) for repeat in range(1, config.search.repeats + 1)]
    judged = repeats[0]
    networks = _check_space(judged)
    check_places(config, store)
    dataset = load_data(judged.data, judged.resources.staging)
    identity, shared = _fingerprint(judged, dataset.fingerprint()), _shared_by_trials(repeats)
    check_same_data(shared, scan_of(shared, store, lambda line: None), store, dataset.fingerprint())
    folder = store.root / "searches" / f"{config.name}-{identity[:8]}"
    meter = Meter(config.budget, config.prices, folder / "used.json")
    with Lease(store, identity) as lease:
        if not lease.held:
            raise BadSweep(f"search: another process is already running this search ({folder}): wait for it, or stop it")
        check_trackers(config, folder.name)
        keep_checked(store, networks)
        written.keep_settled()
        try:
            with opened_journal(folder, lambda line: console.print(Text(line, style="yellow"), soft_wrap=True)) as journal:
                run = Run(judged, store, folder.name)
                run.keep_needs(shared.stages)
                studies = _search(repeats, dataset, run, *journal, console, command, joining, meter)
        except KeyboardInterrupt:
            console.print(
                f"\nstopped{signals.was_asked().why}: what was tried is kept; the same command resumes it", highlight=False
            )
            return ExitCode.INTERRUPTED
    if meter.exhausted and any(len(study.ended()) < study.search.trials for study in studies):
        console.print(f"{meter.exhausted}; raise it, and the same command resumes it", highlight=False, soft_wrap=True)
        return ExitCode.BUDGET
    for study in studies:
        if not study.winners():
            console.print(f"{study.title}: no training completed, so there is no best trial; see search.stop", style="red")
            return ExitCode.FAILED
    written.keep_settled()  # where the store did not answer before
    winners = [winner for study in studies for winner in winners_of(study)]
    _say_edges(winners, console)
    final = final_of(config)
    plan = plan_of_winners(final, winners)
    name = f"{config.name}-{fingerprint([final.science(), [winner.identity for winner in winners]])[:8]}"
    run = Run(final, store, name)
    (run.folder / SUMMARY).write(json.dumps(summary_of(studies), indent=1).encode())
    return run_sweep(final, command, joining, plan, run, meter)


def _say_edges(winners: Sequence[Winner], console: Console) -> None:
    """Say which of the best settings lie at the end of their range."""
    for winner in winners:
        for edge in winner.edges:
            line = f"{winner.study}: the best {edge}; better may lie beyond it"
            console.print(Text(line, style="yellow"), soft_wrap=True)


def judged_by(config: SweepConfig, repeat: int = 1) -> SweepConfig:
    """Return the settings by which trials of a repeat are judged: on the holdout, with pairs of its own."""
    search = config.search
    assert search is not None
    bare = _bare(config)
    try:
        base = judging_base(config.seeds.base, repeat)
        return changed(bare, {"data.holdout": search.holdout, "seeds.replicates": search.replicates, "seeds.base": base})
    except ValueError as error:
        raise BadSweep(f"search.holdout: {_line(error)}") from error


def final_of(config: SweepConfig) -> SweepConfig:
    """Return the settings of the runs by which the winners are judged: fresh seeds, the test split."""
    search = config.search
    assert search is not None
    return changed(_bare(config), {"seeds.base": search.final.base, "seeds.replicates": search.final.replicates})


def _bare(config: SweepConfig) -> SweepConfig:
    """Refuse what would have to be computed for each trial, whose arms are alone, and seeds that are not fresh; BadSweep."""
    search = config.search
    assert search is not None
    for repeat in range(1, search.repeats + 1):
        if search.final.base == judging_base(config.seeds.base, repeat):
            whose = "seeds.base" if repeat == 1 else f"the base seed of repeat {repeat}"
            raise BadSweep(
                f"search.final.base: {search.final.base} is {whose}, so the winners would be evaluated on the pairs of "
                "networks that selected them: set another"
            )
    if config.analyses != AnalysesConfig() or config.connect is not None:
        section = "analyses" if config.connect is None else "connect"
        raise BadSweep(
            f"{section}: cannot be combined with search, whose arms have settings of their own; run the winners as a sweep"
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
    plan = joined_plan(judged, [plan_of(judged_by(config, repeat)) for repeat in range(1, search.repeats + 1)])
    shared, arms = (
        Plan(judged, tuple(stage for stage in plan.stages if (stage.kind == "sparse") == is_arm)) for is_arm in (False, True)
    )
    graph = scan_of(plan, store, print)
    studies = search.repeats * (1 if search.arms == "shared" else len(config.sparse.arms))
    whose = f"of the winners of one of {search.repeats} repeats" if search.repeats > 1 else "of the winners"
    epochs = [sum(stage.epochs for stage in part.stages) for part in (shared, arms)]
    first, each = (hours(part, graph, store, share_of(config)) for part in (shared, arms))
    time = in_hours(first.gpus + search.trials * each.gpus, first.cpus + search.trials * each.cpus)
    return (
        f"the plan is that {whose}; before it a search of {studies} x {search.trials} trials, of about "
        f"{epochs[0] + search.trials * epochs[1]:,} epochs and {time} where none is stopped, "
        f"on {search.holdout:,} held-out training samples"
    )


def _check_space(config: SweepConfig) -> list[str]:
    """Try every setting of the space at its ends, and all points to start at; BadSweep for what no sweep could be.

    Returns the networks that passed, for `keep_checked`.
    """
    search = config.search
    assert search is not None
    plan = plan_of(config)
    if search.repeats * len(plan.stages) > MOST_STAGES:
        raise BadSweep(
            f"search.repeats: {search.repeats:,} repeats of {len(plan.stages):,} stages are more than the {MOST_STAGES:,} "
            "that a plan has at most"
        )
    networks = tried(plan, Store(config.storage))
    points = [({name: value}, f"search.space.{name}") for name, space in search.space.items() for value in space.ends]
    points += [(point, "search.start") for point in search.start or []]
    for point, where in points:
        for name in point:
            if name.split(".")[0] not in SECTIONS:
                raise BadSweep(f"search.space: {name} is not a setting that a search can change ({', '.join(SECTIONS)})")
            if name.endswith(".precision") and point[name] == AUTO:
                raise BadSweep(f"{where}: {name}: auto may differ from machine to machine: name the precisions to try")
        try:
            networks += tried(plan_of(changed(config, point)), Store(config.storage))
        except ValueError as error:
            raise BadSweep(f"{where}: {point}: {_line(error)}") from error
    from raylth.cluster.search.study import check_sampler, first_points

    try:
        check_sampler(search)
    except ValueError as error:
        raise BadSweep(str(error)) from error
    except Exception as error:  # what a sampler makes of strange settings can be anything
        raise BadSweep(f"search.sampler: {search.sampler.name}: {type(error).__name__}: {_line(error)}") from error
    try:
        first_points(config)
    except ValueError as error:
        raise BadSweep(str(error)) from error
    return networks


def _studies(repeats: Sequence[SweepConfig], journal: Path) -> "list[Study]":
    """Open every study: of each repeat, by its settings, one for each arm, or one for all."""
    from raylth.cluster.search.study import Study

    search, arms = repeats[0].search, repeats[0].sparse.arms
    assert search is not None
    groups = {"shared": list(arms)} if search.arms == "shared" else {arm: [arm] for arm in arms}
    return [
        Study(name, list(group), config, journal, repeat)
        for repeat, config in enumerate(repeats, start=1)
        for name, group in groups.items()
    ]


def _search(
    repeats: Sequence[SweepConfig],
    dataset: Dataset,
    run: Run,
    journal: Path,
    kept: Callable[[], None],
    console: Console,
    command: Sequence[str],
    joining: Joining,
    meter: Meter,
) -> "list[Study]":
    """Compute what the trials of each repeat share, then run what is left of every study."""
    studies = _studies(repeats, journal)
    ahead = [(study, left) for study in studies if (left := study.search.trials - len(study.ended())) > 0]
    if meter.exhausted or not ahead:
        return studies
    shared = _shared_by_trials([repeats[number - 1] for number in sorted({study.repeat for study, _ in ahead})])
    graph = scan_of(shared, run.store, lambda line: console.print(Text(line, style="yellow")))
    status = StatusFile(run.folder)

    def on_update(graph: Graph, epochs: int) -> list[str]:
        status.update(graph, epochs, meter.used)
        return []

    def report(line: str) -> None:
        kept()
        status.update(graph, 0, meter.used, note=line)
        console.print(line, highlight=False, soft_wrap=True)

    try:
        if not graph.finished:
            compute(shared, graph, run, dataset, console, command, joining, meter, on_update)
        _run_studies(ahead, run.store, dataset, report, joining, meter)
    except KeyboardInterrupt:
        status.update(graph, 0, meter.used, state="stopped", note=f"stopped{signals.was_asked().why}")
        raise
    status.update(graph, 0, meter.used, state="finished")
    return studies


def _run_studies(
    ahead: "Sequence[tuple[Study, int]]",
    store: Store,
    dataset: Dataset,
    report: Callable[[str], None],
    joining: Joining,
    meter: Meter,
) -> None:
    """Run as many trials of each study as are left, one study after the other, on one cluster."""
    from raylth.cluster.launch import check_shares, joined
    from raylth.cluster.nodes.capacity import machines
    from raylth.cluster.nodes.preflight import versions
    from raylth.cluster.search.study import search_on_ray
    from raylth.cluster.worker.payload import SearchShared

    with joined(joining) as ray, tempfile.TemporaryDirectory(prefix="raylth-search-") as scratch:
        data, sha256, root = [ray.put(dataset)], dataset.fingerprint(), str(store.root.absolute())
        check_shares(ahead[0][0].config.resources, machines())  # which all studies have
        for study, left in ahead:
            if not meter.exhausted:
                config, stops = study.config, study.search.stops
                every = stops.grace_epochs if stops else config.log.evaluate_every
                given = SearchShared(root, data, sha256, versions(), config=config.model_dump(mode="json"), every=every)
                search_on_ray(study, given, left, report, scratch, meter, None if joining.is_local else machines())


def _shared_by_trials(repeats: Sequence[SweepConfig]) -> Plan:
    """Plan what every trial starts from."""
    whole = joined_plan(repeats[0], [plan_of(config) for config in repeats])
    return Plan(repeats[0], tuple(stage for stage in whole.stages if kind_of(stage.kind).feeds_arms))


def _fingerprint(config: SweepConfig, data_sha256: str) -> str:
    """Tell searches apart whose trials could not be compared; more trials or repeats of the same are the same search.

    The keys of the stages tell of a network's code and a mask's bytes, too, and `data_sha256` of the data.
    """
    assert config.search is not None
    search = config.search.model_dump(mode="json", exclude=OF_THE_SAME_SEARCH)
    return fingerprint([config.science(), search, sorted(stage.key for stage in plan_of(config).stages), data_sha256])


def _line(error: Exception) -> str:
    """Return what is wrong in one line, also of pydantic's errors."""
    details: Any = getattr(error, "errors", None)
    return "; ".join(str(detail["msg"]) for detail in details()) if details else " ".join(str(error).split())
