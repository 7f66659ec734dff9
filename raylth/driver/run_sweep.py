"""Runs a sweep: what its store lacks, through Ray; then its results, table and report."""

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Sequence

import psutil
from rich.console import Console
from rich.text import Text

from raylth.cluster.address import Joining
from raylth.cluster.nodes.budget_meter import Meter
from raylth.common import signals, terminal
from raylth.common.importing import uncollected
from raylth.config.load import BadSweep
from raylth.config.sweep import SweepConfig
from raylth.core.data import Dataset
from raylth.core.data.streamed.dataset import ImageFiles, has_ffcv
from raylth.driver.live_view import SweepView
from raylth.driver.prepare import check_space, plan_of, scan_of, tried
from raylth.driver.progress import StatusFile
from raylth.driver.run_record import Recorder, Run
from raylth.stages import Graph, Plan, forecast, free_bytes, in_units, keep_checked, load_same_data
from raylth.store import Store
from raylth.trackers import check_exporters

__all__ = ["EXIT_BUDGET", "EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_OK", "check_places", "compute", "run_sweep"]

EXIT_OK, EXIT_FAILED, EXIT_BUDGET, EXIT_INTERRUPTED = 0, 1, 3, signals.EXIT_INTERRUPTED

LAST_START_SECONDS = 1.0  # until the last stages are with their workers
INTERRUPTED_SECONDS = 5.0  # for exporters to end after Ctrl-C
NO_FFCV = "FFCV is not installed here: PIL reads the same images, several times slower (make ffcv; docs/guides/imagenet.md)"


def run_sweep(
    config: SweepConfig,
    command: Sequence[str],
    joining: Joining,
    plan: Plan | None = None,
    run: Run | None = None,
    meter: Meter | None = None,
) -> int:
    """Run a sweep to its end, write its results, print its table; returns the exit status.

    A search has a plan of its own, whose arms differ in settings, a run of its own, and one count of its cost.

    Raises DataError, NewerStore, BadSweep or ClusterError before anything is trained.
    """
    console = Console()
    store = Store(config.storage)
    plan, run = plan or plan_of(config), run or Run.open(config, store)
    networks = tried(plan, store)
    check_places(config, store)

    def say(line: str) -> None:
        console.print(Text(line, style="yellow"), soft_wrap=True)

    graph = scan_of(plan, store, say)
    dataset = load_same_data(plan, graph, store, say)
    recorder, status = Recorder(run, plan, graph), StatusFile(run.folder)
    meter = meter or Meter(config.budget, config.prices, run.folder / "used.json")

    def also(graph: Graph, epochs: int) -> list[str]:
        keep_checked(store, networks)  # only now is the sweep sure to start
        networks.clear()
        recorder.update()
        status.update(graph, epochs, meter.used)
        return recorder.take_notes()

    if graph.finished:
        console.print(_nothing_to_train(graph, config.name), highlight=False, soft_wrap=True)
    elif meter.exhausted is None and dataset is not None:
        check_space(config, forecast(plan, graph, os.cpu_count() or 1), free_bytes(store.root))
        for line in _hints(dataset):
            console.print(line, style="yellow", highlight=False, soft_wrap=True)
        try:
            compute(plan, graph, run, dataset, console, command, joining, meter, also)
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # the same command writes them
                recorder.close(seconds=INTERRUPTED_SECONDS)
            why = signals.was_asked().why
            status.update(graph, 0, meter.used, state="stopped", note=f"stopped{why}" if why else "")
            console.print(f"\nstopped{why}: {_how_to_go_on(graph, command)}", highlight=False, soft_wrap=True)
            return EXIT_INTERRUPTED
    status.update(graph, 0, meter.used, state="finished" if graph.finished else "stopped")
    try:
        recorder.close()
        for note in recorder.take_notes():
            console.print(Text(note, style="yellow"), soft_wrap=True)
        _show_results(graph, run, console)
    except KeyboardInterrupt:
        console.print(f"stopped{signals.was_asked().why} while the results were written; the same command writes them")
        return EXIT_INTERRUPTED
    except OSError as error:
        text = f"the results could not be written: {error.strerror or error}; the same command writes them"
        console.print(Text(text, style="red"), soft_wrap=True)
        _show_failures(graph, run, console)
        return EXIT_FAILED
    _show_failures(graph, run, console)
    if not graph.finished:
        console.print(f"{meter.exhausted}; raise it. {_how_to_go_on(graph, command)}", highlight=False, soft_wrap=True)
        return EXIT_BUDGET
    return EXIT_FAILED if {"failed", "blocked"} & set(graph.states.values()) else EXIT_OK


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


def _hints(dataset: Dataset) -> list[str]:
    """Say what will make reading images slow on this machine."""
    if not isinstance(dataset, ImageFiles):
        return []
    hints, memory = [] if has_ffcv() else [NO_FFCV], psutil.virtual_memory().total
    if dataset.bytes > memory:
        sizes = f"{in_units(dataset.bytes)} of images and {in_units(memory)} of memory"
        hints.append(f"{sizes}: the disk sets the pace; files with --jpeg-share 1 are smaller (docs/guides/imagenet.md)")
    return hints


def compute(
    plan: Plan,
    graph: Graph,
    run: Run,
    dataset: Dataset,
    console: Console,
    command: Sequence[str],
    joining: Joining,
    meter: Meter,
    also: Callable[[Graph, int], list[str]] = lambda graph, epochs: [],
) -> None:
    """Compute what a graph lacks, with a live table; `also` is called with every turn of it, and returns what to tell."""
    with uncollected():
        from raylth.cluster.launch import run_on_ray

    name = plan.config.name
    console.print(f"{name}: {joining}", highlight=False, soft_wrap=True)
    todo = sum(state == "waiting" for state in graph.states.values())
    held = f"; {len(graph.cached)} are in the store already" if graph.cached else ""
    ahead = _Ahead()
    with SweepView(console, f"{name}: {todo} of {len(plan.stages)} stages to run{held}") as view:

        def watch(graph: Graph, epochs: int, notes: list[str]) -> None:
            view.update(graph, epochs, [*notes, *also(graph, epochs)])
            ahead.turn(graph)

        def lost(head: str) -> None:
            how = _how_to_go_on(graph, command)
            os.write(2, f"\n{name}: the Ray cluster at {head} does not answer any more; start it again. {how}\n".encode())
            os._exit(EXIT_FAILED)  # what Ray is asked now would wait for it

        run_on_ray(plan, graph, run.store, dataset, errors=run.errors, watch=watch, meter=meter, joining=joining, lost=lost)


def _nothing_to_train(graph: Graph, name: str) -> str:
    number, done = len(graph.stages), sum(state == "done" for state in graph.states.values())
    if done == number:
        return f"{name}: nothing to train, all {number} stages are in the store"
    return f"{name}: nothing to train, {done} of {number} stages are done, and what diverged is not tried again"


def _how_to_go_on(graph: Graph, command: Sequence[str]) -> str:
    done = sum(state == "done" for state in graph.states.values())
    typed = shlex.join([terminal.typed_python(), "-m", "raylth.sweep", *command])
    return f"{done} of {len(graph.stages)} stages are finished and saved. To go on, run the same again:\n  {typed}"


class _Ahead:
    """Imports what shows the results (a second) while the last stages run, which need no more of this process."""

    def __init__(self) -> None:
        self.all_run_since: float | None = None
        self.is_done = False

    def turn(self, graph: Graph) -> None:
        """Import when nothing has waited for a moment: what was taken last is with its worker then."""
        if "waiting" in graph.states.values():
            self.all_run_since = None
        elif self.all_run_since is None:
            self.all_run_since = time.monotonic()
        elif not self.is_done and time.monotonic() - self.all_run_since > LAST_START_SECONDS:
            self.is_done = True
            with contextlib.suppress(Exception):  # it is told when the results are shown, and all stages are saved
                _import_report()


def _import_report() -> None:
    with uncollected():
        import raylth.report  # noqa: F401


def _show_results(graph: Graph, run: Run, console: Console) -> None:
    """Print the table and where everything is; write the report."""
    _import_report()
    from raylth.report import load_barriers, load_results, render_barriers, render_table, write_report

    if graph.num_computed:
        here = f"{graph.num_computed} stages computed here, {len(graph.cached)} were in the store"
        console.print(here, highlight=False, soft_wrap=True)
    results = load_results(run.folder)
    sparse_done = ((results["stage"] == "sparse") & (results["status"] == "done")).any()
    if sparse_done:
        title = f"{run.config.name}: {run.config.data.name}, {run.config.model.name}"
        console.print(render_table(results, title, max_width=console.width))
    barriers = load_barriers(run.folder)
    if len(barriers):
        console.print(render_barriers(barriers))
    if graph.num_computed or not run.report.exists():
        write_report(run.folder, run.report.parent)
    console.print(f"report : {run.report}", highlight=False, soft_wrap=True)
    console.print(f"results: {run.results}", highlight=False, soft_wrap=True)


def _show_failures(graph: Graph, run: Run, console: Console) -> None:
    """Print every stage that is not done, with the reason, and how often a worker ended."""
    for key, error in graph.errors.items():
        state = graph.states[key]
        console.print(Text(f"{state}: {graph.stages[key].name}: {error}", style="red"), soft_wrap=True)
        blocked = [graph.stages[child].name for child, failed in graph.blockers.items() if failed == key]
        if blocked:
            shown = ", ".join(blocked[:5]) + (f" and {len(blocked) - 5} more" if len(blocked) > 5 else "")
            console.print(f"         blocks {len(blocked)}: {shown}", highlight=False, soft_wrap=True)
        traceback = run.errors / f"{key}.txt"
        with contextlib.suppress(OSError):
            if traceback.exists():  # a worker that died left none
                console.print(f"         traceback: {traceback}", highlight=False, soft_wrap=True)
    if graph.incidents:
        counted = ", ".join(f"{times} {cause}" for cause, times in sorted(graph.incidents.items()))
        console.print(f"workers that ended: {counted}", highlight=False, soft_wrap=True)
