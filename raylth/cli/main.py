"""The console script: `raylth sweep FILE` is `python -m raylth.sweep FILE`."""

import importlib
import sys
from typing import NoReturn

from raylth import __version__
from raylth.common import signals, terminal
from raylth.common.exit_codes import ExitCode
from raylth.common.importing import uncollected

__all__ = ["COMMANDS", "entry", "main"]

COMMANDS = {  # name -> (module with a `main`, what it does)
    "quickstart": ("raylth.cli.quickstart", "show the paper's finding on embedded data, in minutes"),
    "new": ("raylth.cli.new", "write a sweep file of your own, with comments"),
    "check": ("raylth.cli.check", "try a sweep's data and networks, and print its plan and cost"),
    "sweep": ("raylth.cli.sweep", "run a sweep file"),
    "report": ("raylth.report.command", "write the report of a sweep"),
    "cluster": ("raylth.cluster.nodes.down", "shut down a cluster, and list what is left of it"),
    "data": ("raylth.cli.data", "convert ImageNet into the format that sweeps read"),
    "status": ("raylth.cli.status", "show the progress of the sweeps of a store"),
    "serve": ("raylth.serve.command", "show the sweeps of a store in a browser while they run"),
    "store": ("raylth.cli.store", "list what a store holds, and remove what no sweep needs"),
    "export": ("raylth.export.command", "export one trained network into a folder"),
    "results": ("raylth.cli.results", "query the results in SQL"),
    "compare": ("raylth.cli.compare", "show runs side by side"),
    "completion": ("raylth.cli.completion", "print a script for shell completion of these commands"),
}


def main() -> int:
    """Hand the rest of the command line to the named command; returns its exit status."""
    if sys.argv[1:] == ["--version"]:
        print(f"raylth {__version__}")
        return ExitCode.OK
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        wanted = sys.argv[1] if len(sys.argv) > 1 else None
        asked_for_help = wanted in ("-h", "--help")
        stream = sys.stdout if asked_for_help else sys.stderr
        if wanted and not asked_for_help:
            from raylth.common.registry import nearest

            print(f"raylth: unknown command {wanted!r}{nearest(wanted, COMMANDS)}", file=stream)
        print("usage: raylth COMMAND ...", file=stream)
        for name, (_, purpose) in COMMANDS.items():
            print(f"  {name:10} {purpose} (raylth {name} --help)", file=stream)
        return ExitCode.OK if asked_for_help else ExitCode.BAD_INPUT
    signals.end_at_once()
    sys.path.insert(0, "")  # as python -m has it: a sweep may name networks of the folder where it is started
    with uncollected():
        module = importlib.import_module(COMMANDS[sys.argv[1]][0])
    return terminal.run(lambda: module.main(sys.argv[2:]))


def entry() -> NoReturn:
    """Run the console script."""
    terminal.leave(main())
