"""Reads a sweep file into a SweepConfig; whatever is wrong becomes one line: file, line, key path, what would be legal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import AliasChoices, BaseModel, ValidationError

from raylth.config import SweepConfig
from raylth.registry import nearest

__all__ = ["BadSweep", "Places", "read_sweep", "read_sweep_and_places"]

KeyPath = tuple[str | int, ...]
COMMAND_LINE = "command line"
EXPECTED = {  # pydantic's kind of error -> what should be there; what is missing here reads well in its own words
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "string_type": "should be text (in quotes, if need be)",
    "string_too_short": "should not be empty",
    "string_pattern_mismatch": "should be of small letters, digits, - and _, the first a letter or a digit",
    "list_type": "should be a list such as [a, b]",
    "too_short": "must have at least one entry",
}


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
        lines, twice = _lines(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        raise BadSweep(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(raw, dict):
        kind = "nothing" if raw is None else type(raw).__name__
        raise BadSweep(f"{file}: expected settings such as 'name: my-sweep', found {kind}")
    if twice:
        found = [(line, _dotted(path), f"is there twice, in line {lines[path]} and in line {line}") for path, line in twice]
        raise BadSweep("\n".join(f"{file}:{line}: {key}: {message}" for line, key, message in found))
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
        raise BadSweep(f"{COMMAND_LINE}: {override!r} is not of the form key.path=value")
    try:
        parsed = yaml.safe_load(value)
        _, twice = _lines(yaml.compose(value, Loader=yaml.SafeLoader), path)
    except yaml.YAMLError as error:
        raise BadSweep(f"{COMMAND_LINE}: {override!r}: the value is not YAML") from error
    if twice:
        raise BadSweep(f"{COMMAND_LINE}: {_dotted(twice[0][0])}: is there twice in {override!r}")
    node = raw
    for depth, part in enumerate(path[:-1], start=1):
        if node.get(part) is None:
            node[part] = {}
            sources[path[:depth]] = COMMAND_LINE
        node = node[part]
        if not isinstance(node, dict):
            raise BadSweep(f"{COMMAND_LINE}: {key}: {_dotted(path[:depth])} is {_shown(node)}, there is nothing below it")
    replaced = [path, *((*path[:-1], word) for word in _other_words(path))]
    for word in replaced:
        node.pop(word[-1], None)
        for known in [known for known in sources if known[: len(path)] == word]:
            del sources[known]
    node[path[-1]] = parsed
    sources[path] = COMMAND_LINE


def _describe(error: Any, places: Places) -> str:
    """Turn one of pydantic's errors into "file:line: key.path: what is wrong and what would be right"."""
    path = tuple(part for part in error["loc"] if part != "[key]")
    kind, context, found = error["type"], error.get("ctx", {}), error.get("input")
    if kind in ("extra_forbidden", "invalid_key"):
        known = list(_model_at(path[:-1]).model_fields)
        others = _other_words(path)
        if others:  # an alias, and pydantic took the other word
            other = _dotted((*path[:-1], others[0]))
            return (
                f"{places.find(path)}: {_dotted(path)}: is another word for {other}, which is set, too: leave out one of them"
            )
        message = f"unknown key{nearest(str(path[-1]), known)} (known: {', '.join(known)})"
    elif kind == "missing":
        message = "is required"
    elif kind == "literal_error":
        legal = [name.strip().strip("'") for name in context["expected"].replace(" or ", ", ").split(",")]
        message = f"{_shown(found)} is unknown{nearest(str(found), legal)} (known: {', '.join(legal)})"
    elif kind == "value_error":
        message = str(context["error"])
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        message = f"expected settings below this key, found {_shown(found)}"
    else:
        own_words = error["msg"].removeprefix("Input ").removeprefix("String ")
        message = f"{EXPECTED.get(kind, own_words[0].lower() + own_words[1:])}, found {_shown(found)}"
    field, separator, rest = message.partition(": ")
    if kind == "value_error" and separator and field.replace(".", "_").isidentifier():  # a check over several keys
        path, message = (*path, *field.split(".")), rest
    return f"{places.find(path)}: {_dotted(path)}: {message}"


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _shown(value: object) -> str:
    """Write a value much as a sweep file does, at most a line long."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_setting(path: KeyPath) -> bool:
    """Tell whether a key path starts with the name of a setting, or of the section and the setting in it."""
    return path[0] in SweepConfig.model_fields and (len(path) == 1 or path[1] in _model_at(path[:1]).model_fields)


def _other_words(path: KeyPath) -> list[str]:
    """Return the other words for the setting at a key path: `name` for `model.import`, and the other way round."""
    for setting in _model_at(path[:-1]).model_fields.values():
        if isinstance(setting.validation_alias, AliasChoices):
            words = [word for word in setting.validation_alias.choices if isinstance(word, str)]
            if path[-1] in words:
                return [word for word in words if word != path[-1]]
    return []


def _model_at(path: KeyPath) -> type[BaseModel]:
    """Return the settings model that a key path leads to, or the last one on its way."""
    model: type[BaseModel] = SweepConfig
    for part in path:
        if isinstance(part, int):  # an entry of a list of models: its field led there
            continue
        if part not in model.model_fields:  # a mistake, which is named when the whole is validated
            break
        annotation = model.model_fields[part].annotation
        below = [type_ for type_ in (annotation, *get_args(annotation)) if isinstance(type_, type)]  # X, X | None, list[X]
        found = next((type_ for type_ in below if issubclass(type_, BaseModel)), None)
        if found is None:
            break
        model = found
    return model


def _lines(node: yaml.Node | None, path: KeyPath = ()) -> tuple[dict[KeyPath, int], list[tuple[KeyPath, int]]]:
    """Map every key path of a YAML document to its line, counted from 1; and list each key that comes again."""
    lines: dict[KeyPath, int] = {}
    twice: list[tuple[KeyPath, int]] = []
    if isinstance(node, yaml.MappingNode):
        entries = [((*path, key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        entries = [((*path, index), value, value) for index, value in enumerate(node.value)]
    else:
        return lines, twice
    for child, key, value in entries:
        line = key.start_mark.line + 1
        if child in lines:
            twice.append((child, line))
            continue
        lines_below, twice_below = _lines(value, child)
        lines |= {child: line, **lines_below}
        twice += twice_below
    return lines, twice
