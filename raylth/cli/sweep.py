"""The command line of a sweep: `python -m raylth.sweep FILE [key.path=value ...]`. Running it again is the resume."""

import argparse
import json
from collections.abc import Sequence

from raylth import __version__
from raylth.common import importing
from raylth.common.exit_codes import ExitCode, describe

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
    parser.add_argument("file", nargs="?", metavar="FILE", help="the sweep file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what the store already holds")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of a sweep file")
    parser.add_argument(
        "--address",
        help="a Ray cluster's address; auto: this machine's; local: a Ray of its own (default: RAY_ADDRESS, else your "
        "Ray on this machine, else local)",
    )
    parser.add_argument("--cluster", metavar="FILE", help="send the sweep to the cluster that `ray up FILE` made")
    parser.add_argument(
        "--without-token", action="store_true", help="join a cluster of several machines without token authentication"
    )
    parser.add_argument("--version", action="version", version=f"raylth {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="show Ray's own messages")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = make_parser()
    options = parser.parse_intermixed_args(arguments)
    if options.schema:
        with importing.uncollected():
            from raylth.config.sweep import SweepConfig
        print(json.dumps(SweepConfig.model_json_schema(), indent=2))
        return ExitCode.OK
    if options.file is None:
        parser.error("a sweep FILE is needed, for example sweeps/quickstart.yaml")
    if options.cluster and options.address:
        parser.error(
            "--cluster sends the sweep to a cluster's head, --address joins a cluster from here: give only one of them"
        )
    with importing.uncollected():  # seconds, in which Ctrl-C ends the process at once
        from raylth.cli.start import start
    return start(options)
