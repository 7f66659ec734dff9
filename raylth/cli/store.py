"""What a store holds, and what can be removed from it: `python -m raylth.store list|gc|rm STORE`."""

import argparse
import json
import sys
from collections.abc import Collection, Sequence

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from raylth.common.exit_codes import ExitCode, describe
from raylth.driver.progress import load_status, state_of
from raylth.store import Store, leased
from raylth.store.needs import Usage, remove_artefacts, remove_run
from raylth.store.run_files import RunFileBroken, is_run

__all__ = ["main", "make_parser"]

DESCRIPTION = """\
List the sweeps of a store with what they hold, and remove what is not needed. gc and rm only show what they would remove
unless they are given --yes; what a living process computes is never removed.

examples:
  python -m raylth.store list raylth-store
  python -m raylth.store gc raylth-store --yes                          # artefacts that no sweep needs
  python -m raylth.store rm raylth-store quickstart-1a2b3c4d --yes      # a sweep's run, and what only it needs
"""

COUNTS = ("artefacts", "held", "bytes", "shared_bytes")  # needed; in the store; of these; of those that other runs need, too


class Refused(ValueError):
    """Why nothing is removed, in one line."""


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.store",
        description=DESCRIPTION,
        epilog=describe({ExitCode.OK: "", ExitCode.BAD_INPUT: "no such store or run, or nothing may be removed now"}),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["list", "gc", "rm"], help="what to do")
    parser.add_argument("store", metavar="STORE", help="the store's folder (`storage` in the sweep file)")
    parser.add_argument("run", metavar="RUN", nargs="?", help="rm: the run, as list shows it")
    parser.add_argument("--yes", action="store_true", help="gc, rm: remove it")
    parser.add_argument("--json", action="store_true", help="list: print it as JSON, one object per run")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 where nothing may be removed or there is no such store or run."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if (options.run is not None) != (options.action == "rm"):
        parser.error("rm needs a RUN" if options.action == "rm" else f"{options.action} takes no RUN")
    try:
        store = Store(options.store)
        usage = Usage.read(store)
        runs = [name for name in usage.needs if is_run(store.root / "runs" / name)]  # other files may lie there, too
        if not runs:
            raise Refused(f"no sweep has run here; expected {options.store}/runs/<run>")
        if options.action == "list":
            _list(store, usage, runs, as_json=options.json)
        elif options.action == "gc":
            _collect(store, usage, is_sure=options.yes)
        else:
            _remove(store, usage, runs, options.run, is_sure=options.yes)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        print(f"{options.store}: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    return ExitCode.OK


def _list(store: Store, usage: Usage, runs: Sequence[str], *, as_json: bool) -> None:
    held = [_held(usage, name) for name in runs]
    states = {name: _state(store, name) for name in runs}
    if as_json:
        for name, counts in zip(runs, held, strict=True):
            found = dict.fromkeys(COUNTS) if counts is None else dict(zip(COUNTS, counts, strict=True))
            print(json.dumps({"run": name, "state": states[name], **found}))
        return
    table = Table()
    for heading in ("run", "state", "artefacts", "size", "shared with others"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    for name, counts in zip(runs, held, strict=True):
        cells = ["not recorded", "?", "?"]
        if counts is not None:
            needed, there, size, shared = counts
            cells = [f"{there:,} of {needed:,}", decimal(size), decimal(shared)]
        table.add_row(name, states[name], *cells)
    console = Console()
    console.print(table)
    if others := usage.sizes.keys() - frozenset().union(*(keys for keys in usage.needs.values() if keys)):
        console.print(f"{_counted(others, usage)} of no run that is recorded", highlight=False)


def _held(usage: Usage, run: str) -> list[int] | None:
    """Return what `COUNTS` names of a run; None where it does not say what it needs."""
    own = usage.needs[run]
    if own is None:
        return None
    shared = own & frozenset().union(*(keys for name, keys in usage.needs.items() if keys and name != run))
    return [len(own), len(own & usage.published), usage.bytes_of(own), usage.bytes_of(shared)]


def _collect(store: Store, usage: Usage, *, is_sure: bool) -> None:
    unneeded = usage.unneeded()
    unknown = leased(store) - usage.by_others()
    if unknown:
        raise Refused(
            f"a process computes {min(unknown)[:12]}, which no run needs (a search, perhaps): wait for it, or stop it"
        )
    _say(unneeded, usage, "needed by no run", is_sure=is_sure)
    if is_sure:
        _say_kept(remove_artefacts(store, unneeded))


def _remove(store: Store, usage: Usage, runs: Sequence[str], run: str, *, is_sure: bool) -> None:
    if run not in runs:
        raise Refused(f"no run {run!r} (there are {', '.join(runs)})")
    if _state(store, run) == "running":
        raise Refused(f"{run} is running: stop it first")
    keys = usage.only_of(run)
    if busy := leased(store) & keys:
        raise Refused(f"{run}: a process computes {min(busy)[:12]}, which it needs: wait for it, or stop it")
    _say(keys, usage, f"needed by {run} alone, with its folder and rows", is_sure=is_sure)
    if usage.needs[run] is None:
        print(f"{run} has no record of the artefacts that it needs: when it is removed, gc removes them")
    if is_sure:
        _say_kept(remove_run(store, run, keys))


def _say_kept(number: int) -> None:
    if number:
        print(f"{number:,} of them kept: a sweep that has started meanwhile needs them")


def _say(keys: Collection[str], usage: Usage, what: str, *, is_sure: bool) -> None:
    print(
        f"{_counted(keys, usage)} {what}: {'removing' if is_sure else 'nothing was removed; --yes removes them'}", flush=True
    )


def _counted(keys: Collection[str], usage: Usage) -> str:
    return f"{len(keys):,} artefact{'' if len(keys) == 1 else 's'} ({decimal(usage.bytes_of(keys))})"


def _state(store: Store, run: str) -> str:
    try:
        status = load_status(store.root / "runs" / run)
    except (OSError, RunFileBroken):
        return "unreadable"
    return "unknown" if status is None else state_of(status)
