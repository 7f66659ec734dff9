"""Reads a sweep file into a SweepConfig; whatever is wrong becomes one line: file, line, key path, what would be legal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from raylth.config import SweepConfig
from raylth.registry import nearest

__all__ = ["BadSweep", "read_sweep"]

KeyPath = tuple[str | int, ...]


class BadSweep(ValueError):
    """A sweep that cannot be run as written; its text holds one line per mistake."""


def read_sweep(file: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a YAML sweep file, apply `key.path=value` overrides (values are YAML), and validate the whole.

    Raises BadSweep: one line per mistake, with the file and line or the override it came from.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise BadSweep(f"{file}: cannot be read: {reason}") from error
    try:
        raw = yaml.safe_load(text)
        lines = _lines(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        raise BadSweep(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(raw, dict):
        raise BadSweep(
            f"{file}: expected settings such as 'name: my-sweep', found {'nothing' if raw is None else type(raw).__name__}"
        )
    sources: dict[KeyPath, str] = {path: f"{file}:{line}" for path, line in lines.items()}
    for override in overrides:
        _override(raw, override, sources)
    try:
        return SweepConfig.model_validate(raw)
    except ValidationError as error:
        raise BadSweep("\n".join(_describe(detail, sources, str(file)) for detail in error.errors())) from None


def _override(raw: dict[str, Any], override: str, sources: dict[KeyPath, str]) -> None:
    key, equals, value = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise BadSweep(f"command line: {override!r} is not of the form key.path=value")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadSweep(f"command line: {override!r}: the value is not YAML") from error
    node = raw
    for part in path[:-1]:
        child = node.get(part)
        if not isinstance(child, dict):
            child = {}
            node[part] = child
        node = child
    node[path[-1]] = parsed
    for known in [known for known in sources if known[: len(path)] == path]:
        del sources[known]
    sources[path] = "command line"


def _describe(error: Any, sources: dict[KeyPath, str], file: str) -> str:
    """Turn one of pydantic's errors into "file:line: key.path: what is wrong and what would be right"."""
    path = tuple(part for part in error["loc"])
    kind, context, found = error["type"], error.get("ctx", {}), error.get("input")
    if kind == "extra_forbidden":
        known = list(_model_at(path[:-1]).model_fields)
        message = f"unknown key{nearest(str(path[-1]), known)} (known: {', '.join(known)})"
    elif kind == "missing":
        message = "is required"
    elif kind == "literal_error":
        legal = [name.strip().strip("'") for name in context["expected"].replace(" or ", ", ").split(",")]
        message = f"{found!r} is unknown{nearest(str(found), legal)} (known: {', '.join(legal)})"
    elif kind == "value_error":
        message = str(context["error"])
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        message = f"expected settings below this key, found {found!r}"
    else:
        message = f"{error['msg'][0].lower()}{error['msg'][1:].replace('Input should', 'should')}, found {found!r}"
        message = message.removeprefix("input ")
    field, separator, rest = message.partition(": ")
    if kind == "value_error" and separator and field.replace(".", "_").isidentifier():  # a check over several keys
        path, message = (*path, *field.split(".")), rest
    source = next((sources[path[:n]] for n in range(len(path), 0, -1) if path[:n] in sources), file)
    return f"{source}: {'.'.join(map(str, path))}: {message}"


def _model_at(path: KeyPath) -> type[BaseModel]:
    """Return the settings model that a key path leads to."""
    model: type[BaseModel] = SweepConfig
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return model


def _lines(node: yaml.Node | None, path: KeyPath = ()) -> dict[KeyPath, int]:
    """Map every key path of a YAML document to its line, counted from 1."""
    lines: dict[KeyPath, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, key.value)
            lines[child] = key.start_mark.line + 1
            lines |= _lines(value, child)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            lines |= _lines(value, (*path, index))
    return lines
