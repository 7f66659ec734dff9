"""A running sweep in a notebook: progress, failures, accuracies and a figure, drawn again until it has ended."""

import contextlib
import io
import time
from collections.abc import Callable
from html import escape
from typing import Any

import pandas as pd

from raylth.driver.progress import STATES, duration, read_status, speed, state_of
from raylth.report import accuracy_table, accuracy_vs_rewind, load_results
from raylth.store import Location, locate

__all__ = ["live"]


def live(run: str, *, every: float = 5.0, wait: float = 0.0, figure: Callable[[pd.DataFrame], Any] | None = None) -> None:
    """Show a run, `<store>/runs/<run>` or the newest of a store, in a notebook until it has ended; interrupting stops it.

    Drawn again every `every` seconds: stages by state, speed and time left, failures with their reasons, the table of
    accuracies so far, and `figure(results)`, by default accuracy against the rewind point. The sweep runs in another process,
    which may start up to `wait` seconds later, and is not affected; what cannot be drawn has its error there. Raises
    FileNotFoundError where no sweep has run, ImportError without IPython, RuntimeError outside a notebook.
    """
    from IPython.display import HTML, display

    folder = _folder(run, wait)
    text, picture = display(HTML(""), display_id=True), display(HTML(""), display_id=True)
    if text is None or picture is None:  # a plain Python
        raise RuntimeError("live draws in a notebook; in a terminal: raylth status STORE --watch")
    status: dict[str, Any] | None = None
    try:
        while True:
            with contextlib.suppress(OSError):  # of a store that does not answer now
                status = read_status(folder) or status
            results = _results(folder)
            text.update(HTML(_page(folder.name, status, results)))
            if results is not None:
                try:
                    picture.update(_picture((figure or _figure)(results)))
                except Exception as error:  # of one's own figure, or of rows that cannot be drawn so far
                    picture.update(HTML(_line(error)))
            if status is None or state_of(status) != "running":
                return
            time.sleep(every)
    except KeyboardInterrupt:
        return


def _folder(run: str, wait: float) -> Location:
    """Return the folder of a run, or of a store's run that is running, or else its newest; waits for one that starts."""
    place, start = locate(run.rstrip("/") or "/"), time.time()
    while True:
        found = _statuses(place)
        running = {name for name, status in found.items() if state_of(status) == "running" or status["time"] > start}
        if found and (running or time.time() - start >= wait):
            newest = max(running or found, key=lambda name: found[name]["time"])
            return place / newest if newest else place
        if time.time() - start >= wait:
            raise FileNotFoundError(f"{run}: no sweep has run here; expected <store>/runs/<run>, or a store")
        time.sleep(0.5)


def _statuses(place: Location) -> dict[str, dict[str, Any]]:
    """Return the status of each run by its path in `place`, which is "" where that is a run itself."""
    if (own := read_status(place)) is not None:
        return {"": own}
    runs = place / "runs"
    return {f"runs/{name}": status for name in runs.names() if (status := read_status(runs / name)) is not None}


def _results(folder: Location) -> pd.DataFrame | None:
    """Return the rows of a run, None while no sparse network has finished, or where a file is being replaced."""
    try:
        results = load_results(folder)
    except (OSError, ValueError):
        return None
    is_done = (results["stage"] == "sparse") & (results["status"] == "done")
    return results if is_done.any() else None


def _figure(results: pd.DataFrame) -> Any:
    return accuracy_vs_rewind(results, "test accuracy so far")


def _picture(figure: Any) -> Any:
    """Return a figure of matplotlib as an image, so that it needs no `%matplotlib inline`; what is none as it is."""
    if not hasattr(figure, "savefig"):
        return figure
    from IPython.display import Image
    from matplotlib import pyplot

    png = io.BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight")
    pyplot.close(figure)
    return Image(png.getvalue())


def _page(name: str, status: dict[str, Any] | None, results: pd.DataFrame | None) -> str:
    """Return the progress of a run and its accuracies as HTML."""
    if status is None:
        return f"<p>{escape(name)}: not started</p>"
    state = state_of(status)
    words = [f"elapsed {duration(status['elapsed_seconds'])}"]
    if state == "running":
        words.insert(0, speed(status["epochs_per_second"]))
        words += [f"about {duration(left)} left"] if (left := status["left_seconds"]) is not None else []
    stages = pd.DataFrame(status["stages"]).T.reindex(columns=list(STATES)).fillna(0).astype(int)
    parts = [f"<p><b>{escape(name)}: {state}</b>; {', '.join(words)}</p>", stages.loc[:, stages.any()].to_html()]
    if status.get("note"):
        parts.append(f"<p>{escape(status['note'])}</p>")
    parts += [
        f"<p>{escape(entry['state'])}: {escape(entry['stage'])}: {escape(entry['error'])}</p>" for entry in status["errors"]
    ]
    try:
        table = None if results is None else accuracy_table(results).round(2).to_html()
    except ValueError as error:  # rows that cannot be averaged
        table = _line(error)
    return "".join([*parts, table or "<p>no sparse network has finished yet</p>"])


def _line(error: Exception) -> str:
    return f"<p>{escape(f'{type(error).__name__}: {error}')}</p>"
