"""Reads a sweep file into a SweepConfig; whatever is wrong becomes one line: file, line, key path, what would be legal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raylth.config import SweepConfig
from raylth.registry import nearest

__all__ = ["BadSweep", "Places", "read_sweep", "read_sweep_and_places"]

KeyPath = tuple[str | int, ...]


class BadSweep(ValueError):
    """A sweep that cannot be run as written; its text holds one line per mistake."""


@dataclass(frozen=True)
class Places:
    """Where the settings of a sweep were made, for mistakes that come to light after its file was read."""

    file: str
    sources: Mapping[KeyPath, str] = field(default_factory=dict)  # key path -> "file:line" or "command line"

    def find(self, path: KeyPath) -> str:
        """Return where a setting was made, or the nearest one above it; the file when it says neither."""
        return next((self.sources[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.sources), self.file)

    def locate(self, error: object) -> str:
        """Return an error's text; where it starts with a setting ("key.path: ..."), that setting's place comes first."""
        key, separator, _ = str(error).partition(": ")
        path = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        return f"{self.find(path)}: {error}" if separator and _is_setting(path) else str(error)


def read_sweep(file: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a YAML sweep file, apply `key.path=value` overrides (values are YAML), and validate the whole.

    Raises BadSweep: one line per mistake, with the file and line or the override it came from.
    """
    return read_sweep_and_places(file, overrides)[0]


def read_sweep_and_places(file: str | Path, overrides: Sequence[str] = ()) -> tuple[SweepConfig, Places]:
    """Read a sweep file as `read_sweep` does, and keep where each setting was made."""
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
    places = Places(str(file), sources)
    try:
        return SweepConfig.model_validate(raw), places
    except ValidationError as error:
        raise BadSweep("\n".join(_describe(detail, places) for detail in error.errors())) from None


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


def _describe(error: Any, places: Places) -> str:
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
    return f"{places.find(path)}: {'.'.join(map(str, path))}: {message}"


def _is_setting(path: KeyPath) -> bool:
    """Tell whether a key path starts with the name of a setting, or of the section and the setting in it."""
    return path[0] in SweepConfig.model_fields and (len(path) == 1 or path[1] in _model_at(path[:1]).model_fields)


def _model_at(path: KeyPath) -> type[BaseModel]:
    """Return the settings model that a key path leads to."""
    model: type[BaseModel] = SweepConfig
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        below = [type_ for type_ in (annotation, *get_args(annotation)) if isinstance(type_, type)]  # X, or X | None
        found = next((type_ for type_ in below if issubclass(type_, BaseModel)), None)
        if found is None:
            break
        model = found
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
