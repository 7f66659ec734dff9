"""The command line of a report: `python -m raylth.report STORE_OR_RUN [--out DIR]`."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from raylth.common import signals
from raylth.common.exit_codes import ExitCode, describe
from raylth.common.importing import uncollected
from raylth.store import Location, locate

__all__ = ["main", "make_parser"]

STATUSES = {
    ExitCode.OK: "",
    ExitCode.BAD_INPUT: "there is nothing to report on",
    ExitCode.INTERRUPTED: "interrupted, except with --watch",
}


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.report",
        description="Write the report of a sweep, finished or not: report.html, figures and tables.\n\nexamples:\n"
        "  python -m raylth.report raylth-store\n  python -m raylth.report raylth-store/runs/RUN --out report --watch 60",
        epilog=describe(STATUSES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("place", metavar="STORE_OR_RUN", help="a store, for all its sweeps, or one run, <store>/runs/<run>")
    parser.add_argument("--out", help="folder for the report (default: <run>/report; of a store: <out>/<run>)")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="write it again that often, until Ctrl-C")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 when there is nothing to report on."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    with uncollected():
        from raylth.report.page import write_report
    signals.raise_in_order()
    try:
        place = locate(options.place)
        while True:
            written = _write_all(write_report, place, options.out, patient=options.watch is not None)
            if options.watch is None:
                return ExitCode.OK if written else ExitCode.BAD_INPUT
            time.sleep(options.watch)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        if options.watch is not None:
            return ExitCode.OK
        print("stopped; not everything was written", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _write_all(write: Callable[[Location, Location], object], place: Location, out: str | None, *, patient: bool) -> bool:
    """Write the report of every run; one that cannot be read is named and left out. Returns whether all were written."""
    try:
        runs, whole = _runs(place), True
    except OSError as error:
        if not patient:
            raise
        print(f"{error}; waiting", file=sys.stderr, flush=True)
        return False
    for run in runs:
        target = run / "report" if out is None else locate(out) / run.name if len(runs) > 1 else locate(out)
        try:
            print(write(run, target), flush=True)
        except (OSError, ValueError) as error:
            print(f"{run}: no report: {error}", file=sys.stderr, flush=True)
            whole = False
    return whole


def _runs(place: Location) -> list[Location]:
    if (place / "manifest.json").exists():
        return [place]
    runs = [place / "runs" / name for name in (place / "runs").names(also_empty=True)]
    found = [run for run in runs if (run / "manifest.json").exists()]
    if not found:
        raise FileNotFoundError(f"{place}: no sweep has written results here; expected {place}/runs/<run>/manifest.json")
    return found
