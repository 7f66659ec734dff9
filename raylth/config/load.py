"""Reads a sweep file into a SweepConfig; whatever is wrong becomes one line: file, line, key path, what would be legal."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import AliasChoices, BaseModel, ValidationError

from raylth.config.mistakes import BelowKey, as_written, message_of
from raylth.config.sweep import SweepConfig

__all__ = ["BadSweep", "Places", "read_sweep", "read_sweep_and_places"]

KeyPath = tuple[str | int, ...]
COMMAND_LINE = "command line"
MOST_DEEP, MOST_VALUES = 60, 100_000  # of a file, with all that its aliases repeat
MOST_BITS = 1000  # of a whole number: a float can hold it, and Python writes it
MOST_MISTAKES = 20  # that are shown


class BadSweep(ValueError):
    """A sweep that cannot be run as written; its text holds one line per mistake, and each argument is one."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(_in_one_line(mistake) for mistake in mistakes))


def _in_one_line(text: str) -> str:
    """Write what would end a line, or move a terminal's cursor, as Python does in quotes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


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
    except (OSError, ValueError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise BadSweep(f"{file}: cannot be read: {reason}") from error
    try:
        raw, lines, twice = _parse(text)
    except NotYaml as error:
        raise BadSweep(f"{file}:{error.line}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        kind = "nothing" if raw is None else type(raw).__name__
        raise BadSweep(f"{file}: expected settings such as 'name: my-sweep', found {kind}")
    if twice:
        where = [(_dotted(path), lines[path], line) for path, line in twice]
        found = [f"{file}:{line}: {key}: is set twice, in line {first} and in line {line}" for key, first, line in where]
        raise BadSweep(*_first(found, str(file)))
    sources: dict[KeyPath, str] = {path: f"{file}:{line}" for path, line in lines.items()}
    for override in overrides:
        _override(raw, override, sources)
    places = Places(str(file), sources)
    try:
        return SweepConfig.model_validate(raw), places
    except ValidationError as error:
        raise BadSweep(*_first([_describe(detail, places) for detail in error.errors()], str(file))) from None


def _first(mistakes: list[str], file: str) -> list[str]:
    """Return as many mistakes as a person looks at, and how many more there are."""
    more = len(mistakes) - MOST_MISTAKES
    return mistakes if more <= 0 else [*mistakes[:MOST_MISTAKES], f"{file}: and {more:,} more mistakes"]


def _override(raw: dict[str, Any], override: str, sources: dict[KeyPath, str]) -> None:
    key, equals, value = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path) or len(path) > MOST_DEEP:
        raise BadSweep(f"{COMMAND_LINE}: {override!r} is not of the form key.path=value")
    try:
        parsed, _, twice = _parse(value, path)
    except NotYaml as error:
        raise BadSweep(f"{COMMAND_LINE}: {override!r}: the value is not YAML: {error}") from error
    if twice:
        raise BadSweep(f"{COMMAND_LINE}: {_dotted(twice[0][0])}: is set twice in {override!r}")
    node = raw
    for depth, part in enumerate(path[:-1], start=1):
        below = node.get(part)
        if below is None:
            below = {}
            sources[path[:depth]] = COMMAND_LINE
        if not isinstance(below, dict):
            raise BadSweep(f"{COMMAND_LINE}: {key}: {_dotted(path[:depth])} is {as_written(below)}, which has no keys")
        node[part] = node = dict(below)  # another key may be an alias of the same settings
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
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("extra_forbidden", "invalid_key") and (others := _other_words(path)):  # of an alias
        other = _dotted((*path[:-1], others[0]))
        return f"{places.find(path)}: {_dotted(path)}: is an alias of {other}, which is also set: remove one of them"
    if kind == "value_error" and isinstance(context["error"], BelowKey):
        path = (*path, *context["error"].path)
        return f"{places.find(path)}: {_dotted(path)}: {context['error']}"
    message = message_of(error, list(_model_at(path[:-1]).model_fields))
    field, separator, rest = message.partition(": ")
    if kind == "value_error" and separator and re.fullmatch(r"[\w.:-]+", field):  # a check over several keys
        path, message = (*path, *field.split(".")), rest
    return f"{places.find(path)}: {_dotted(path)}: {message}"


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


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


class NotYaml(ValueError):
    """Text that is not YAML as a sweep may have it; one sentence, and the line."""

    def __init__(self, why: str, line: int) -> None:
        super().__init__(why)
        self.line = line


def _parse(text: str, path: KeyPath = ()) -> tuple[Any, dict[KeyPath, int], list[tuple[KeyPath, int]]]:
    """Return what YAML text says, and what `_lines` finds in it."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines, twice = _lines(node, path)  # before merge keys are filled in
        return (None if node is None else loader.construct_document(node)), lines, twice
    except yaml.reader.ReaderError as error:
        raise NotYaml(f"{error.reason} (U+{error.character:04X})", text.count("\n", 0, error.position) + 1) from error
    except yaml.MarkedYAMLError as error:
        why = error.problem or str(error)
        if why == "but found another document":
            why = "there is a second document, after a line of ---"
        raise NotYaml(why, error.problem_mark.line + 1 if error.problem_mark else 1) from error
    except ValueError as error:  # of an escape such as \\U00110000
        raise NotYaml(str(error), loader.get_mark().line + 1) from error


class _Loader(yaml.SafeLoader):
    """Refuses what no sweep holds: cycles, aliases that make much of little, numbers beyond use, half characters."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.sizes: dict[yaml.Node, tuple[int, int]] = {}  # of whole nodes: values with aliases expanded, and depth

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node and measure it."""
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        if self.depth >= MOST_DEEP:  # each takes some of Python's stack
            raise yaml.composer.ComposerError(None, None, f"more than {MOST_DEEP} levels", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is None:
            return None
        if not is_alias:
            below = node.value if isinstance(node, yaml.CollectionNode) else []
            pairs = below if isinstance(node, yaml.MappingNode) else [(each,) for each in below]
            inner = [self._size(each, mark) for pair in pairs for each in pair]
            self.sizes[node] = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        size, depth = self._size(node, mark)
        if size > MOST_VALUES or depth > MOST_DEEP:
            much = f"{MOST_VALUES:,} values" if size > MOST_VALUES else f"{MOST_DEEP} levels"
            raise yaml.composer.ComposerError(None, None, f"more than {much}, with aliases expanded", mark)
        return node

    def _size(self, node: yaml.Node, mark: yaml.Mark) -> tuple[int, int]:
        if node not in self.sizes:
            raise yaml.composer.ComposerError(None, None, "an alias refers to a node that contains it", mark)
        return self.sizes[node]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; what PyYAML's own constructors raise at strange text can be anything."""
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:
            shown = as_written(node.value) if isinstance(node.value, str) else "this"
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown} cannot be read as {kind} (in quotes it is text)", node.start_mark
            ) from error
        why = None
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            why = "a number of more than 300 digits"
        elif isinstance(value, set):
            why = "a set, which has no order: write a list such as [a, b]"
        elif isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            why = f"{as_written(value)} holds an unpaired surrogate"
        if why is not None:
            raise yaml.constructor.ConstructorError(None, None, why, node.start_mark)
        return value


def _lines(node: yaml.Node | None, path: KeyPath = ()) -> tuple[dict[KeyPath, int], list[tuple[KeyPath, int]]]:
    """Map every key path of a YAML document to its line, counted from 1; and list each key that comes again."""
    lines: dict[KeyPath, int] = {}
    twice: list[tuple[KeyPath, int]] = []
    if isinstance(node, yaml.MappingNode):
        entries = [((*path, key.value), key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
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
