"""MkDocs hooks: the pages of the reference that are made from the code at every build, so that they cannot be out of date."""

import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that is documented, whatever is installed

__all__ = ["PAGES", "on_files"]

HELP_WIDTH = "100"  # columns of a command's --help


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site (an event of MkDocs)."""
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files


def settings_page() -> str:
    """Return the page of all settings, from the JSON schema of a sweep file."""
    from raylth.config.sweep import SweepConfig

    schema = SweepConfig.model_json_schema()
    models = {"": schema} | {f"#/$defs/{name}": model for name, model in schema["$defs"].items()}
    paths: dict[str, list[str]] = {"": []}  # reference of a model -> key paths at which it stands
    for reference, path in _below("", "", models):
        paths.setdefault(reference, []).append(path)
    blocks = [
        "# Settings",
        "Every setting of a sweep file with its type, default and meaning, from the same models that check the file. "
        "`python -m raylth.sweep --schema` prints them as a JSON schema, which editors complete and check "
        "(`sweeps/schema.json`). An unknown key is an error.",
    ]
    for reference, places in paths.items():
        title = ", ".join(f"`{place}`" for place in places) or "The sweep file"
        blocks.append(f"## {title} {{ #{_anchor(places[0]) if places else 'sweep'} }}")
        blocks.append(_text(models[reference].get("description", "")))
        required = models[reference].get("required", [])
        rows = [
            _row(f"`{name}`", _type(field, paths), _default(field, name in required), _text(field.get("description", "")))
            for name, field in models[reference]["properties"].items()
        ]
        blocks.append("\n".join(["| setting | type | default | meaning |", "| --- | --- | --- | --- |", *rows]))
    return "\n\n".join(blocks) + "\n"


def commands_page() -> str:
    """Return the page of all commands: their --help."""
    from raylth.cli.main import COMMANDS

    blocks = [
        "# Commands",
        "Each command is `raylth NAME` and, but for `completion`, `python -m raylth.NAME`. `raylth --version` prints the "
        "version. Colours are off where there is no terminal, and with `NO_COLOR`.",
    ]
    with mock.patch.dict(os.environ, {"COLUMNS": HELP_WIDTH, "NO_COLOR": "1"}):
        for name, (module, purpose) in COMMANDS.items():
            shown = importlib.import_module(module).make_parser().format_help()
            blocks.append(f"## raylth {name}\n\n{purpose[0].upper()}{purpose[1:]}.\n\n```text\n{shown.rstrip()}\n```")
    return "\n\n".join(blocks) + "\n"


def columns_page() -> str:
    """Return the page of all tables of results with their columns; meanings are the comments beside the schemas."""
    from raylth.report.sql import TABLES
    from raylth.store import tables

    meanings = _comments(inspect.getsource(tables))
    blocks = [
        "# Result columns",
        "Every table is a Parquet data set, `<storage>/<table>/`, with one file for each run, and a table of "
        "`python -m raylth.results`. `arms` exists in SQL only: one row for each finished sparse network, however many "
        "sweeps of the store share it. [Read the results](../guides/results.md) has examples. Meanings are given where the "
        "name does not say it.",
    ]
    for table, schema in TABLES.items():
        rows = [
            _row(
                f"`{field.name}`", field.type, _text(meanings.get((table, field.name)) or meanings.get(("", field.name), ""))
            )
            for field in schema
        ]
        blocks.append("\n".join([f"## {table}\n", "| column | type | meaning |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(blocks) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings_page,
    "reference/commands.md": commands_page,
    "reference/columns.md": columns_page,
}


def _below(reference: str, path: str, models: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the models below one, each with the key path at which it stands, in the order of the file."""
    for name, field in models[reference]["properties"].items():
        below = f"{path}.{name}" if path else name
        for other in _references(field):
            yield other, below
            yield from _below(other, below, models)


def _references(field: Any) -> Iterator[str]:
    if isinstance(field, dict):
        if "$ref" in field:
            yield field["$ref"]
        for key, value in field.items():
            if key != "default":
                yield from _references(value)
    elif isinstance(field, list):
        for value in field:
            yield from _references(value)


def _type(field: dict[str, Any], paths: dict[str, list[str]]) -> str:
    """Return what a value may be, in words, with a link where it is a model of its own."""
    kind = field.get("type", "any")
    if "$ref" in field:
        place = paths[field["$ref"]][0]
        shown = f"[{place}](#{_anchor(place)})"
    elif "anyOf" in field:
        shown = " or ".join(_type(each, paths) for each in field["anyOf"])
    elif "enum" in field or "const" in field:
        shown = ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    elif kind == "array":
        shown = f"list of {_type(field.get('items') or field.get('prefixItems', [{}])[0], paths)}"
    elif kind == "object":
        below = field.get("additionalProperties")
        shown = f"name -> {_type(below, paths)}" if isinstance(below, dict) else "mapping"
    else:
        signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
        bounds = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field and abs(field[name]) < 2**53]
        shown = f"{kind} {', '.join(bounds)}".strip()
    return shown


def _default(field: dict[str, Any], is_required: bool) -> str:
    if is_required:
        return "required"
    if "$ref" in field or "default" not in field:
        return ""
    shown = field["default"] if isinstance(field["default"], str) else json.dumps(field["default"])
    return f"`{shown}`" if len(shown) < 60 else ""


def _comments(source: str) -> dict[tuple[str, str], str]:
    """Return (table, column) -> the comment beside the column; "" stands for the columns that tables share."""
    found, table = {}, ""
    for line in source.splitlines():
        if start := re.match(r'    "(\w+)": pa\.schema\(', line):
            table = start[1]
        elif column := re.match(r'\s+\("(\w+)", pa\.\w+\(\)\),(?:  # (.*))?$', line):
            found[table, column[1]] = column[2] or ""
    return found


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _anchor(path: str) -> str:
    return path.replace(".", "-")


def _text(words: str) -> str:
    """Return text of a description or comment for a cell of a table in Markdown."""
    plain = " ".join(words.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\*|\[\]])", r"\\\1", plain)
