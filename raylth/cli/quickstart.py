"""`raylth quickstart`: the paper's finding on embedded data in minutes, from an installed package alone."""

import argparse
from collections.abc import Sequence

from raylth.cli import sweep
from raylth.common.exit_codes import describe
from raylth.common.shipped import shipped

__all__ = ["main", "make_parser"]


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments, which are those of `raylth sweep`."""
    parser = argparse.ArgumentParser(
        prog="raylth quickstart",
        description="Run the quickstart: the paper's finding on embedded data, in minutes on two cores.\n\nexamples:\n"
        "  raylth quickstart\n  raylth quickstart seeds.replicates=3 storage=/tmp/store\n  raylth quickstart --dry-run",
        epilog=describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what the store already holds")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = make_parser().parse_intermixed_args(arguments)
    return sweep.main([str(shipped("sweeps") / "quickstart.yaml"), *options.overrides, *["--dry-run"] * options.dry_run])
