"""`raylth completion bash|zsh`: what the shell needs to complete commands, options, files and settings at the TAB key."""

import argparse
import importlib
from collections.abc import Sequence
from types import UnionType
from typing import TYPE_CHECKING, Union, get_args, get_origin

from raylth.cli.main import COMMANDS
from raylth.common.exit_codes import ExitCode
from raylth.common.shipped import sweep_names

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

__all__ = ["main", "make_parser", "model_below", "settings"]


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="raylth completion",
        description="Print a script for shell completion of raylth's commands.",
        epilog="examples:\n  raylth completion bash >>~/.bashrc\n  raylth completion zsh >~/.zfunc/_raylth",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=["bash", "zsh"], help="the shell")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the script."""
    options = make_parser().parse_args(arguments)
    import shtab

    print(shtab.complete(whole_parser(), shell=options.shell))
    return ExitCode.OK


def whole_parser() -> argparse.ArgumentParser:
    """Return one parser with all commands below it; the script is made of it, and runs without Python."""
    import shtab

    from raylth.config.sweep import SweepConfig

    parser = argparse.ArgumentParser(prog="raylth")
    commands = parser.add_subparsers()
    for name, (module, purpose) in COMMANDS.items():
        own = importlib.import_module(module).make_parser()
        below = commands.add_parser(name, parents=[own], add_help=False, help=purpose)
        for action in below._actions:
            if action.dest == "overrides":
                action.choices = [f"{path}=" for path in settings(SweepConfig)]
            elif action.dest == "start":
                action.choices = sweep_names()
            elif action.dest in ("file", "cluster", "html"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.dest in ("store", "place", "runs", "out", "source", "target"):
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return parser


def settings(model: "type[BaseModel]", before: str = "") -> list[str]:
    """Return the key paths of all settings, in the order of the schema."""
    found = []
    for name, field in model.model_fields.items():
        below = model_below(field)
        found += [f"{before}{name}"] if below is None else settings(below, f"{before}{name}.")
    return found


def model_below(field: "FieldInfo") -> "type[BaseModel] | None":
    """Return the model of a section's settings; None for a setting that is none."""
    from pydantic import BaseModel

    is_one_of = get_origin(field.annotation) in (Union, UnionType)  # a dictionary's keys are the user's own
    kinds = get_args(field.annotation) if is_one_of else (field.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
