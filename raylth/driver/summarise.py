"""Third step of a sweep: its results, table, report, and what failed."""

import contextlib

from rich.console import Console
from rich.text import Text

from raylth.driver.compute import import_report
from raylth.driver.run_record import Run
from raylth.stages import Graph

__all__ = ["show_failures", "show_results"]


def show_results(graph: Graph, run: Run, console: Console) -> None:
    """Print the table and where everything is; write the report."""
    import_report()
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


def show_failures(graph: Graph, run: Run, console: Console) -> None:
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
