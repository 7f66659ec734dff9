"""What a person sees while a sweep runs: one live table in a terminal, plain lines anywhere else."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raylth.driver.progress import STATES, Pace, duration, speed
from raylth.stages import Graph

__all__ = ["SweepView"]

PLAIN_INTERVAL = 10.0  # seconds between plain lines
LIVE_INTERVAL = 0.5


class SweepView:
    """Shows stages by state, epochs per second, elapsed and estimated remaining time. Use as a context manager.

    `heading` is printed at the first update, when the sweep is known to run.
    """

    def __init__(self, console: Console, heading: str) -> None:
        self.console = console
        self.heading: str | None = heading
        self.pace = Pace()
        self.shown = float("-inf")
        self.is_over = False
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "SweepView":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, graph: Graph, epochs: int, notes: list[str]) -> None:
        """Show the state of the graph; `epochs` counts what was trained in this run, notes are printed and stay."""
        if self.heading is not None:
            self.console.print(self.heading, highlight=False, soft_wrap=True)
            self.heading = None
        for note in notes:
            self.console.print(Text(note, style="yellow"), soft_wrap=True)
        now = time.monotonic()
        interval = PLAIN_INTERVAL if self.live is None else LIVE_INTERVAL
        is_last = graph.finished and not self.is_over  # once: updates still come while the workers end
        if not is_last and (now - self.shown < interval or self.is_over):
            return
        self.is_over = graph.finished
        self.shown = now
        self.pace.note(epochs)
        if self.live is None:
            self.console.print(self._line(graph), highlight=False, soft_wrap=True)
        else:
            self.live.update(Group(self._table(graph), Text(self._speed(graph))), refresh=True)

    def _table(self, graph: Graph) -> Table:
        table = Table()
        table.add_column("stage")
        for state in STATES:
            table.add_column(state, justify="right")
        for kind, counts in graph.count().items():
            table.add_row(kind, *(str(counts[state]) for state in STATES))
        return table

    def _line(self, graph: Graph) -> str:
        kinds = []
        for kind, counts in graph.count().items():
            bad = "".join(f", {counts[state]} {state}" for state in ("diverged", "failed") if counts[state])
            kinds.append(f"{kind} {counts['done']}/{counts.total()}{bad}")
        return f"{', '.join(kinds)}; {self._speed(graph)}"

    def _speed(self, graph: Graph) -> str:
        idle = "working" if graph.num_computed else "starting"
        text = f"{speed(self.pace.rate) if self.pace.epochs else idle}, elapsed {duration(self.pace.elapsed)}"
        left = self.pace.left(graph)
        return text if left is None else f"{text}, about {duration(left)} left"
