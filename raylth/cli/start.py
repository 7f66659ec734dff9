"""What is done with a sweep file: its plan is printed, it is sent to a cluster, or it is run."""

import argparse
import sys

from raylth.cli.dry_run import print_dry_run
from raylth.cluster.address import LOCAL, ClusterError, Joining, choose_cluster
from raylth.cluster.submit import send
from raylth.common import signals
from raylth.common.exit_codes import ExitCode
from raylth.common.paths import contracted, expanded
from raylth.config.load import BadSweep, read_sweep_and_places
from raylth.config.sweep import SweepConfig
from raylth.core.data import DataError
from raylth.driver.run_search import run_search
from raylth.driver.run_sweep import run_sweep
from raylth.store import NewerStore

__all__ = ["expanded_file", "start"]


def start(options: argparse.Namespace) -> int:
    """Read the sweep file and do what is asked for; returns the exit status."""
    try:
        options.file, options.cluster = (each and expanded_file(each) for each in (options.file, options.cluster))
        address, note = (LOCAL, "") if options.cluster or options.dry_run else choose_cluster(options.address)
        joining = Joining(address, options.without_token, options.verbose, note)
        signals.raise_in_order()
        config, places = read_sweep_and_places(options.file, options.overrides)
        try:
            return _execute(config, options, joining)
        except (BadSweep, DataError, ClusterError) as error:
            raise BadSweep(places.locate(error)) from error
    except KeyboardInterrupt:
        print(signals.STOPPED_EARLY, file=sys.stderr)
        return ExitCode.INTERRUPTED
    except (BadSweep, ClusterError, NewerStore) as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT


def expanded_file(path: str) -> str:
    """Fill in `~` and variables of a sweep file's path; BadSweep for those that are not there."""
    try:
        return expanded(path)
    except ValueError as error:
        raise BadSweep(str(error)) from error


def _execute(config: SweepConfig, options: argparse.Namespace, joining: Joining) -> int:
    if options.dry_run:
        print_dry_run(config)
        return ExitCode.OK
    if options.cluster:
        words = [*options.overrides, *joining.words]
        status, message = send(options.cluster, options.file, words, contracted(config.storage))
        print(message, file=sys.stderr if status else sys.stdout)
        return status
    return _run(config, options, joining)


def _run(config: SweepConfig, options: argparse.Namespace, joining: Joining) -> int:
    typed = [options.file, *options.overrides, *(["--address", options.address] if options.address else []), *joining.words]
    try:
        return (run_sweep if config.search is None else run_search)(config, typed, joining)
    except KeyboardInterrupt:  # before the first training, or after the last one
        why = signals.was_asked().why
        print(f"stopped{why}; what was finished is saved, and the same command resumes it", file=sys.stderr)
        return ExitCode.INTERRUPTED
