"""Progress of the sweeps of a store: `python -m raylth.status STORE`, from any machine that sees the store."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylth.common.exit_codes import ExitCode, describe
from raylth.driver.progress import STATES, duration, process_has_ended, read_status, speed, state_of, used_text
from raylth.store import locate

__all__ = ["main", "make_parser"]


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.status",
        description="Show the progress of the sweeps of a store.\n\nexamples:\n  python -m raylth.status raylth-store\n"
        "  python -m raylth.status s3://my-bucket/store --json",
        epilog=describe({ExitCode.OK: "", ExitCode.BAD_INPUT: "no sweep has run there"}),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", metavar="STORE", help="the store's folder (`storage` in the sweep file)")
    parser.add_argument("--json", action="store_true", help="print it as JSON, one object per sweep")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 when there is no sweep in that folder."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        runs = locate(options.store) / "runs"
        found = {name: status for name in runs.names() if (status := read_status(runs / name)) is not None}
    except (OSError, ValueError) as error:
        print(f"{options.store}: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    if not found:
        print(f"{options.store}: no sweep has run here; expected {options.store}/runs/<sweep>/status.json", file=sys.stderr)
        return ExitCode.BAD_INPUT
    newest_last = sorted(found.items(), key=lambda item: item[1]["time"])
    if options.json:
        for name, status in newest_last:
            print(json.dumps({"run": name, **status, "state": state_of(status)}))
        return ExitCode.OK
    console = Console()
    for name, status in newest_last:
        _show(console, name, status)
    return ExitCode.OK


def _show(console: Console, name: str, status: dict[str, Any]) -> None:
    state, ago = state_of(status), duration(max(0.0, time.time() - status["time"]))
    table = Table(title=f"{name}: {state}, reported {ago} ago by {status['host']}", title_justify="left")
    table.add_column("stage")
    for heading in STATES:
        table.add_column(heading, justify="right")
    for kind, counts in status["stages"].items():
        table.add_row(kind, *(str(counts.get(heading, 0)) for heading in STATES))
    console.print(table)
    line = f"{speed(status['epochs_per_second'])}, elapsed {duration(status['elapsed_seconds'])}"
    if state == "running" and status["left_seconds"] is not None:
        line += f", about {duration(status['left_seconds'])} left"
    console.print(line, highlight=False)
    if status.get("note"):
        console.print(Text(status["note"]), soft_wrap=True)
    if used := used_text(status):
        console.print(f"used so far: {used}", highlight=False)
    if status["incidents"]:
        counted = ", ".join(f"{times} {cause}" for cause, times in sorted(status["incidents"].items()))
        console.print(f"workers that ended: {counted}", highlight=False)
    for entry in status["errors"]:
        blocks = f"; blocks {entry['blocks']}" if entry["blocks"] else ""
        console.print(Text(f"{entry['state']}: {entry['stage']}: {entry['error']}{blocks}", style="red"), soft_wrap=True)
    if status["num_errors"] > len(status["errors"]):
        console.print(f"and {status['num_errors'] - len(status['errors'])} more", highlight=False)
    if state == "lost":
        why = (
            f"process {status['process']['pid']} has ended"
            if process_has_ended(status)
            else f"no update from its driver for {ago}"
        )
        console.print(f"{why}; running the same sweep file again resumes it", highlight=False)
