"""Runs a sweep in three steps: prepare (everything is checked), compute (through Ray), summarise (table and report)."""

import contextlib
import os
from collections.abc import Sequence

import psutil
from rich.console import Console
from rich.text import Text

from raylth.cluster.address import Joining
from raylth.cluster.nodes.budget_meter import Meter
from raylth.common import signals
from raylth.common.exit_codes import ExitCode
from raylth.config.sweep import SweepConfig
from raylth.core.data import Dataset
from raylth.core.data.streamed.dataset import ImageFiles
from raylth.core.data.streamed.loaders import AUTO, chosen_loader
from raylth.driver.compute import compute, how_to_resume
from raylth.driver.prepare import Prepared, check_space, prepare
from raylth.driver.run_record import Run
from raylth.driver.summarise import show_failures, show_results
from raylth.stages import Graph, Plan, forecast, free_bytes, in_units

__all__ = ["run_sweep"]

INTERRUPTED_SECONDS = 5.0  # for exporters to end after Ctrl-C
NO_FFCV = "FFCV is not installed here: {} reads the same images, slower (make ffcv; docs/guides/imagenet.md)"


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
    sweep = prepare(config, lambda line: console.print(Text(line, style="yellow"), soft_wrap=True), plan, run, meter)
    if sweep.graph.finished:
        console.print(_nothing_to_train(sweep.graph, config.name), highlight=False, soft_wrap=True)
    elif sweep.meter.exhausted is None and sweep.dataset is not None:
        check_space(config, forecast(sweep.plan, sweep.graph, os.cpu_count() or 1), free_bytes(sweep.run.store.root))
        for line in _hints(sweep.dataset):
            console.print(line, style="yellow", highlight=False, soft_wrap=True)
        try:
            compute(sweep.plan, sweep.graph, sweep.run, sweep.dataset, console, command, joining, sweep.meter, sweep.update)
        except KeyboardInterrupt:
            return _interrupted(sweep, console, command)
    return _summarise(sweep, console, command)


def _interrupted(sweep: Prepared, console: Console, command: Sequence[str]) -> int:
    """Write what has ended, and say how to continue."""
    with contextlib.suppress(OSError):  # the same command writes them
        sweep.recorder.close(seconds=INTERRUPTED_SECONDS)
    why = signals.was_asked().why
    sweep.status.update(sweep.graph, 0, sweep.meter.used, state="stopped", note=f"stopped{why}" if why else "")
    console.print(f"\nstopped{why}: {how_to_resume(sweep.graph, command)}", highlight=False, soft_wrap=True)
    return ExitCode.INTERRUPTED


def _summarise(sweep: Prepared, console: Console, command: Sequence[str]) -> int:
    """Write the results and the report, print the table and what failed; returns the exit status."""
    graph = sweep.graph
    sweep.keep()
    try:
        try:
            sweep.recorder.close()
        finally:  # a reader who finds it finished finds all rows
            sweep.status.update(graph, 0, sweep.meter.used, state="finished" if graph.finished else "stopped")
        for note in sweep.recorder.take_notes():
            console.print(Text(note, style="yellow"), soft_wrap=True)
        show_results(graph, sweep.run, console)
    except KeyboardInterrupt:
        console.print(f"stopped{signals.was_asked().why} while the results were written; the same command writes them")
        return ExitCode.INTERRUPTED
    except OSError as error:
        text = f"the results could not be written: {error.strerror or error}; the same command writes them"
        console.print(Text(text, style="red"), soft_wrap=True)
        show_failures(graph, sweep.run, console)
        return ExitCode.FAILED
    show_failures(graph, sweep.run, console)
    if not graph.finished:
        console.print(f"{sweep.meter.exhausted}; raise it. {how_to_resume(graph, command)}", highlight=False, soft_wrap=True)
        return ExitCode.BUDGET
    return ExitCode.FAILED if {"failed", "blocked"} & set(graph.states.values()) else ExitCode.OK


def _hints(dataset: Dataset) -> list[str]:
    """Say what will make reading images slow on this machine."""
    if not isinstance(dataset, ImageFiles):
        return []
    loader, memory = chosen_loader(dataset.loader), psutil.virtual_memory().total
    hints = [NO_FFCV.format(loader)] if dataset.loader == AUTO and loader != "ffcv" else []
    if dataset.bytes > memory:
        sizes = f"{in_units(dataset.bytes)} of images and {in_units(memory)} of memory"
        hints.append(f"{sizes}: the disk limits the speed; files with --jpeg-share 1 are smaller (docs/guides/imagenet.md)")
    return hints


def _nothing_to_train(graph: Graph, name: str) -> str:
    number, done = len(graph.stages), sum(state == "done" for state in graph.states.values())
    if done == number:
        return f"{name}: nothing to train, all {number} stages are in the store"
    return f"{name}: nothing to train, {done} of {number} stages are done, and diverged ones are not tried again"
