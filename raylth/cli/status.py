"""Progress of a store's sweeps, or of one: `python -m raylth.status STORE`, from any machine that sees the store."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raylth.common import signals
from raylth.common.exit_codes import ExitCode, describe
from raylth.driver.progress import STATES, duration, load_status, process_has_ended, speed, state_of, used_text
from raylth.store import StorageUnreachable, locate
from raylth.store.run_files import RunFileBroken

__all__ = ["main", "make_parser"]

EVERY = 2.0  # seconds between two looks of --watch


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.status",
        description="Show the progress of the sweeps of a store.\n\nexamples:\n  python -m raylth.status raylth-store\n"
        "  python -m raylth.status s3://my-bucket/store --json\n  python -m raylth.status raylth-store/runs/RUN --watch",
        epilog=describe({ExitCode.OK: "", ExitCode.BAD_INPUT: "no sweep has run there"}),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "the store's folder (`storage` in the sweep file), or one run of it: <store>/runs/<run>"
    parser.add_argument("store", metavar="STORE", help=text)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print it as JSON, one object per sweep")
    how.add_argument("--watch", action="store_true", help="show it until no sweep is running (Ctrl-C ends this alone)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 when there is no sweep in that folder."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        found, broken = _read(options.store)
        for problem in broken:
            print(problem, file=sys.stderr)
        if not found:
            if broken:
                return ExitCode.BAD_INPUT
            print(
                f"{options.store}: no sweep has run here; expected {options.store}/runs/<sweep>/status.json", file=sys.stderr
            )
            return ExitCode.BAD_INPUT
        if options.watch:
            return _watch(options.store, found)
    except (OSError, ValueError) as error:
        print(f"{options.store}: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    if options.json:
        for name, status in found.items():
            print(json.dumps({"run": name, **status, "state": state_of(status)}))
        return ExitCode.OK
    console = Console()
    for name, status in found.items():
        _show(console, name, status)
    return ExitCode.OK


def _read(place: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the status of each run of a store, or of the one run that is named, the newest last; a line for each unreadable.

    Raises OSError where the store does not answer.
    """
    folder, found, broken = locate(place.rstrip("/") or "/"), {}, []
    is_run = (folder / "status.json").exists()
    for run in [folder] if is_run else [folder / "runs" / name for name in (folder / "runs").names(also_empty=True)]:
        try:
            status = load_status(run)
        except StorageUnreachable:
            raise
        except (OSError, RunFileBroken) as error:
            broken.append(f"{run.name}: cannot be read: {error}")
            continue
        if status is not None:
            found[run.name] = status
    return dict(sorted(found.items(), key=lambda item: item[1]["time"])), broken


def _watch(place: str, found: dict[str, dict[str, Any]]) -> int:
    """Show what runs, or where nothing does the newest run, again and again until nothing does."""
    shown = {[*found][-1]} if not _running(found) else set[str]()
    signals.raise_in_order()  # for a Live that ends leaves the terminal as it was
    console = Console()
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, transient=True) as live:
        while running := _running(found):
            shown |= running
            live.update(Group(*(part for name in found if name in shown for part in _parts(name, found[name]))), refresh=True)
            time.sleep(EVERY)
            with contextlib.suppress(OSError):  # of a store that does not answer now: what was read last stays
                found |= _read(place)[0]
    for name in (name for name in found if name in shown):
        _show(console, name, found[name])
    return ExitCode.OK


def _running(found: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, status in found.items() if state_of(status) == "running"}


def _show(console: Console, name: str, status: dict[str, Any]) -> None:
    for part in _parts(name, status):
        console.print(part, soft_wrap=isinstance(part, Text))


def _parts(name: str, status: dict[str, Any]) -> Iterator[RenderableType]:
    """Yield what is shown of a run: a table, and lines."""
    state, ago = state_of(status), duration(max(0.0, time.time() - status["time"]))
    by = f" by {status['host']}" if status.get("host") else ""
    table = Table(title=f"{name}: {state}, reported {ago} ago{by}", title_justify="left")
    table.add_column("stage")
    for heading in STATES:
        table.add_column(heading, justify="right")
    for kind, counts in status.get("stages", {}).items():
        table.add_row(kind, *(str(counts.get(heading, 0)) for heading in STATES))
    yield table
    pace = [speed(status["epochs_per_second"])] if "epochs_per_second" in status else []
    pace += [f"elapsed {duration(status['elapsed_seconds'])}"] if "elapsed_seconds" in status else []
    if state == "running" and status.get("left_seconds") is not None:
        pace.append(f"about {duration(status['left_seconds'])} left")
    if pace:
        yield Text(", ".join(pace))
    if status.get("note"):
        yield Text(status["note"])
    if used := used_text(status):
        yield Text(f"used so far: {used}")
    if status.get("incidents"):
        counted = ", ".join(f"{times} {cause}" for cause, times in sorted(status["incidents"].items()))
        yield Text(f"workers that ended: {counted}")
    errors = status.get("errors", [])
    for entry in errors:
        blocks = f"; blocks {entry['blocks']}" if entry.get("blocks") else ""
        text = ": ".join(str(entry.get(name, "")) for name in ("state", "stage", "error"))
        yield Text(f"{text}{blocks}", style="red")
    if (more := status.get("num_errors", 0) - len(errors)) > 0:
        yield Text(f"and {more} more")
    if state == "lost":
        why = (
            f"process {status['process']['pid']} has ended"
            if process_has_ended(status)
            else f"no update from its driver for {ago}"
        )
        yield Text(f"{why}; running the same sweep file again resumes it")
