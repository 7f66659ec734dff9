"""Second step of a sweep: what its store lacks is computed through Ray, with a live table."""

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Sequence

from rich.console import Console

from raylth.cluster.address import Joining
from raylth.cluster.nodes.budget_meter import Meter
from raylth.common import terminal
from raylth.common.exit_codes import ExitCode
from raylth.common.importing import uncollected
from raylth.core.data import Dataset
from raylth.driver.live_view import SweepView
from raylth.driver.run_record import Run
from raylth.stages import Graph, Plan

__all__ = ["compute", "how_to_resume", "import_report"]

LAST_START_SECONDS = 1.0  # until the last stages are with their workers


def compute(
    plan: Plan,
    graph: Graph,
    run: Run,
    dataset: Dataset,
    console: Console,
    command: Sequence[str],
    joining: Joining,
    meter: Meter,
    on_update: Callable[[Graph, int], list[str]] = lambda graph, epochs: [],
) -> None:
    """Compute what a graph lacks, with a live table; `on_update` runs at every iteration of its loop and returns messages."""
    with uncollected():
        from raylth.cluster.launch import run_on_ray

    name = plan.config.name
    console.print(f"{name}: {joining}", highlight=False, soft_wrap=True)
    todo = sum(state == "waiting" for state in graph.states.values())
    held = f"; {len(graph.cached)} are in the store already" if graph.cached else ""
    ahead = ImportAhead()
    with SweepView(console, f"{name}: {todo} of {len(plan.stages)} stages to run{held}") as view:

        def watch(graph: Graph, epochs: int, notes: list[str]) -> None:
            view.update(graph, epochs, [*notes, *on_update(graph, epochs)])
            ahead.turn(graph)

        def lost(head: str) -> None:
            how = how_to_resume(graph, command)
            os.write(2, f"\n{name}: the Ray cluster at {head} no longer responds; start it again. {how}\n".encode())
            os._exit(ExitCode.FAILED)  # what Ray is asked now would wait for it

        run_on_ray(plan, graph, run.store, dataset, errors=run.errors, watch=watch, meter=meter, joining=joining, lost=lost)


def how_to_resume(graph: Graph, command: Sequence[str]) -> str:
    """Say how much is finished, and which command continues."""
    done = sum(state == "done" for state in graph.states.values())
    typed = shlex.join([terminal.typed_python(), "-m", "raylth.sweep", *command])
    return f"{done} of {len(graph.stages)} stages are finished and saved. To resume, run the same command again:\n  {typed}"


class ImportAhead:
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
            with contextlib.suppress(Exception):  # shown again when the results are; all stages are saved
                import_report()


def import_report() -> None:
    """Import what shows the results."""
    with uncollected():
        import raylth.report.page  # noqa: F401
