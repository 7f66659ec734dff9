"""The command line of a sweep: `python -m raylth.sweep FILE [key.path=value ...]`. Running it again is the resume."""

import argparse
import json
import sys
from collections.abc import Sequence

from raylth import __version__
from raylth.common import importing, signals
from raylth.common.exit_codes import ExitCode, describe

with importing.uncollected():
    from raylth.cli.dry_run import print_plan
    from raylth.cluster.address import LOCAL, ClusterError, Joining, choose_cluster
    from raylth.cluster.submit import send
    from raylth.common.paths import contracted, expanded
    from raylth.config.load import BadSweep, read_sweep_and_places
    from raylth.config.sweep import SweepConfig
    from raylth.core.data import DataError
    from raylth.driver.run_search import final_of, run_search, what_is_searched
    from raylth.driver.run_sweep import run_sweep
    from raylth.store import NewerStore

__all__ = ["main", "make_parser"]

ABOUT = """\
Run a sweep file: train the networks, find the masks and permutations, write tables and figures.

examples:
  python -m raylth.sweep sweeps/quickstart.yaml
  python -m raylth.sweep sweeps/quickstart.yaml --dry-run
  python -m raylth.sweep sweeps/quickstart.yaml seeds.replicates=5 'sparse.rewinds=[0, 10]'
  python -m raylth.sweep sweeps/fair_comparison.yaml search.trials=40
  python -m raylth.sweep sweeps/imagenet.yaml --cluster cluster.yaml
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.sweep",
        description=ABOUT,
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="the sweep, as YAML")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what the store already holds")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of a sweep file")
    parser.add_argument(
        "--address",
        help="a Ray cluster's address; auto: this machine's; local: a Ray of its own (default: RAY_ADDRESS, else what "
        "you run on this machine, else local)",
    )
    parser.add_argument("--cluster", metavar="FILE", help="send the sweep to the cluster that `ray up FILE` made")
    parser.add_argument("--without-token", action="store_true", help="join several machines that ask nobody for a token")
    parser.add_argument("--version", action="version", version=f"raylth {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="show Ray's own messages")
    return parser


def _expanded(path: str) -> str:
    try:
        return expanded(path)
    except ValueError as error:
        raise BadSweep(str(error)) from error


def _run(config: SweepConfig, options: argparse.Namespace, joining: Joining) -> int:
    typed = [options.file, *options.overrides, *(["--address", options.address] if options.address else []), *joining.words]
    try:
        return (run_sweep if config.search is None else run_search)(config, typed, joining)
    except KeyboardInterrupt:  # before the first training, or after the last one
        why = signals.was_asked().why
        print(f"stopped{why}; what was finished is saved, and the same command goes on", file=sys.stderr)
        return ExitCode.INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = make_parser()
    options = parser.parse_intermixed_args(arguments)
    if options.schema:
        print(json.dumps(SweepConfig.model_json_schema(), indent=2))
        return ExitCode.OK
    if options.file is None:
        parser.error("a sweep FILE is needed, for example sweeps/quickstart.yaml")
    if options.cluster and options.address:
        parser.error("--cluster sends the sweep to a cluster's head, --address joins a cluster from here: one of them")
    try:
        options.file, options.cluster = (each and _expanded(each) for each in (options.file, options.cluster))
        address, note = (LOCAL, "") if options.cluster or options.dry_run else choose_cluster(options.address)
        joining = Joining(address, options.without_token, options.verbose, note)
        signals.raise_in_order()
        config, places = read_sweep_and_places(options.file, options.overrides)
        try:
            if options.cluster and not options.dry_run:
                words = [*options.overrides, *joining.words]
                status, told = send(options.cluster, options.file, words, contracted(config.storage))
                print(told, file=sys.stderr if status else sys.stdout)
                return status
            if options.dry_run:
                print_plan(config if config.search is None else final_of(config))
                if config.search is not None:
                    print(what_is_searched(config))
                return ExitCode.OK
            return _run(config, options, joining)
        except (BadSweep, DataError, ClusterError) as error:
            raise BadSweep(places.locate(error)) from error
    except KeyboardInterrupt:
        print(signals.STOPPED_EARLY, file=sys.stderr)
        return ExitCode.INTERRUPTED
    except (BadSweep, ClusterError, NewerStore) as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
