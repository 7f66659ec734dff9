"""What a person sees while a sweep runs: one live table in a terminal, plain lines anywhere else."""

import time
from collections import deque

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raylth.stages import Graph
from raylth.stages.graph import STATES

__all__ = ["SweepView", "duration"]

WINDOW = 30.0  # seconds over which the speed is measured
PLAIN_INTERVAL = 10.0  # seconds between plain lines
LIVE_INTERVAL = 0.5


def duration(seconds: float) -> str:
    """Write a time for people: 48 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class SweepView:
    """Shows stages by state, epochs per second, elapsed and estimated remaining time. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.start = time.monotonic()
        self.shown = float("-inf")
        self.samples: deque[tuple[float, int]] = deque()  # (time, epochs trained in this run)
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
        for note in notes:
            self.console.print(Text(note, style="yellow"))
        now = time.monotonic()
        interval = PLAIN_INTERVAL if self.live is None else LIVE_INTERVAL
        if now - self.shown < interval and not graph.finished:
            return
        self.shown = now
        self.samples.append((now, epochs))
        while now - self.samples[0][0] > WINDOW:
            self.samples.popleft()
        if self.live is None:
            self.console.print(self._line(graph, epochs), highlight=False, soft_wrap=True)
        else:
            self.live.update(Group(self._table(graph), Text(self._speed(graph, epochs))), refresh=True)

    def _table(self, graph: Graph) -> Table:
        table = Table()
        table.add_column("stage")
        for state in STATES:
            table.add_column(state, justify="right")
        for kind, counts in graph.count().items():
            table.add_row(kind, *(str(counts[state]) for state in STATES))
        return table

    def _line(self, graph: Graph, epochs: int) -> str:
        kinds = []
        for kind, counts in graph.count().items():
            bad = "".join(f", {counts[state]} {state}" for state in ("diverged", "failed") if counts[state])
            kinds.append(f"{kind} {counts['done']}/{counts.total()}{bad}")
        return f"{', '.join(kinds)}; {self._speed(graph, epochs)}"

    def _speed(self, graph: Graph, epochs: int) -> str:
        (first, before), (last, after) = self.samples[0], self.samples[-1]
        rate = (after - before) / (last - first) if last > first else 0.0
        text = f"{rate:.1f} epochs/s, elapsed {duration(time.monotonic() - self.start)}"
        left = self._epochs_left(graph, epochs)
        return f"{text}, about {duration(left / rate)} left" if rate > 0 and left > 0 else text

    @staticmethod
    def _epochs_left(graph: Graph, epochs: int) -> int:
        """Epochs of all stages that this run still has to finish, less what it has trained."""
        ahead = sum(
            stage.epochs
            for key, stage in graph.stages.items()
            if key not in graph.cached and graph.states[key] not in ("diverged", "failed", "blocked")
        )
        return max(0, ahead - epochs)
