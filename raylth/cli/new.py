"""`raylth new NAME`: a sweep file of one's own, with a comment on every setting in it."""

import argparse
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylth.cli.completion import model_below
from raylth.common.exit_codes import ExitCode, describe
from raylth.common.importing import uncollected
from raylth.common.registry import nearest
from raylth.common.shipped import shipped, sweep_names
from raylth.store import write_atomically

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["commented", "main", "make_parser"]

SCHEMA = "raylth-schema.json"  # beside the new file, for editors
WIDTH = 110  # columns of a comment
STATUSES = {ExitCode.OK: "", ExitCode.BAD_INPUT: "nothing was written"}


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="raylth new",
        description="Write a sweep file of your own, NAME.yaml, which starts as one of the package's.\n\nexamples:\n"
        "  raylth new mine\n  raylth new mine --from vit_digits\n  raylth new --list",
        epilog=describe(STATUSES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the sweep's name, and its file's without .yaml")
    parser.add_argument("--from", dest="start", default="quickstart", metavar="SWEEP", help="the sweep to start from")
    parser.add_argument("--list", action="store_true", help="list the sweeps to start from")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(sweep_names()))
        return ExitCode.OK
    if options.name is None:
        parser.error("a NAME is needed, for example mine")
    with uncollected():
        from raylth.config.sweep import SweepConfig
    pattern = next(each.pattern for each in SweepConfig.model_fields["name"].metadata if hasattr(each, "pattern"))
    target = Path(f"{options.name}.yaml")
    if not re.fullmatch(pattern, options.name):
        return _refused(
            f"NAME: {options.name!r} may have lower-case letters, digits, - and _ only, and starts with neither sign"
        )
    if options.start not in sweep_names():
        known = ", ".join(sweep_names())
        return _refused(f"--from: no sweep {options.start!r}{nearest(options.start, sweep_names())} (known: {known})")
    text = commented((shipped("sweeps") / f"{options.start}.yaml").read_text(), options.name, options.start)
    # not the package's own file: an installed plug-in's names are completed too
    schema = json.dumps(SweepConfig.model_json_schema(), indent=2) + "\n"
    try:
        _write_both(target, text, target.with_name(SCHEMA), schema)
    except ValueError as error:
        return _refused(str(error))
    except OSError as error:
        return _refused(f"{error.filename}: {error.strerror}")
    print(f"{target}: what it costs: raylth sweep {target} --dry-run; run it: raylth sweep {target}")
    return ExitCode.OK


def _write_both(target: Path, text: str, beside: Path, schema: str) -> None:
    """Write a sweep file and its schema, each whole, or neither; ValueError where one would replace a file."""
    if os.path.lexists(target):
        raise ValueError(f"{target} is there already: choose another name, or remove it")
    is_there = os.path.lexists(beside)
    if is_there and beside.read_text(encoding="utf-8", errors="replace") != schema:
        raise ValueError(
            f"{beside} is there already with other content (another version's, or with other plug-ins): remove it, which "
            "has it written anew"
        )
    if not is_there:
        _write(beside, schema)
    try:
        _write(target, text)
    except OSError:
        if not is_there:
            beside.unlink(missing_ok=True)
        raise


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:  # which may name the temporary file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _refused(why: str) -> int:
    print(why, file=sys.stderr)
    return ExitCode.BAD_INPUT


def commented(text: str, name: str, source: str) -> str:
    """Return a sweep file as one of another name, with a comment on every setting from its description."""
    import yaml

    from raylth.config.sweep import SweepConfig

    values = {**yaml.safe_load(text), "name": name}
    head = [
        f"# yaml-language-server: $schema={SCHEMA}",
        "#",
        f"# Starts as the sweep {source}; all settings: raylth sweep --schema",
    ]
    return "\n".join([*head, *_lines(SweepConfig, values, 0)]) + "\n"


def _lines(model: "type[BaseModel]", values: Mapping[str, Any], depth: int) -> Iterator[str]:
    margin = "  " * depth
    for name, value in values.items():
        field = model.model_fields.get(name)
        below = model_below(field) if field is not None else None
        if depth == 0:
            yield ""
        about = (field and field.description) or (below and below.__doc__) or ""
        for line in textwrap.wrap(" ".join(about.split()), WIDTH - len(margin)):
            yield f"{margin}# {line}"
        if below is not None and isinstance(value, Mapping) and value:
            yield f"{margin}{name}:"
            yield from _lines(below, value, depth + 1)
        else:
            yield f"{margin}{name}: {_flow(value)}"


def _flow(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n...\n").strip()
