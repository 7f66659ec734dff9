"""`raylth check FILE`: everything that can be known of a sweep before it trains, tried and printed."""

import argparse
import sys
from collections.abc import Sequence

from raylth.common import signals
from raylth.common.exit_codes import ExitCode, describe
from raylth.common.importing import uncollected

__all__ = ["main", "make_parser"]

STATUSES = {ExitCode.OK: "the sweep can start", ExitCode.BAD_INPUT: "a setting, network or data set that cannot be used"}


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="raylth check",
        description="Read a sweep's data, compute the loss and gradient of one batch for each of its networks, derive their "
        "symmetry, and print the plan with its cost. Nothing is written, and no Ray is started.\n\nexamples:\n"
        "  raylth check sweeps/quickstart.yaml\n  raylth check mine.yaml model.name=torchvision:resnet18",
        epilog=describe(STATUSES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="a sweep file, for example sweeps/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = make_parser().parse_intermixed_args(arguments)
    with uncollected():
        from raylth.cli.dry_run import print_check
        from raylth.cli.start import expanded_file
        from raylth.config.load import BadSweep, read_sweep_and_places
        from raylth.core.data import DataError
        from raylth.store import NewerStore

    signals.raise_in_order()
    try:
        config, places = read_sweep_and_places(expanded_file(options.file), options.overrides)
        try:
            print_check(config)
        except (BadSweep, DataError) as error:
            raise BadSweep(places.locate(error)) from error
    except KeyboardInterrupt:
        print(signals.STOPPED_EARLY, file=sys.stderr)
        return ExitCode.INTERRUPTED
    except (BadSweep, NewerStore) as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    return ExitCode.OK
