"""What is wrong with a setting, as one line for people."""

from collections.abc import Sequence
from typing import Any

from raylth.common.registry import nearest

__all__ = ["BelowKey", "as_written", "message_of"]

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
    "string_pattern_mismatch": "should be lowercase letters, digits, - and _, starting with a letter or a digit",
    "list_type": "should be a list such as [a, b]",
    "too_short": "must have at least one entry",
}


class BelowKey(ValueError):
    """A mistake below the setting that was checked: `path` leads there, the text says what is wrong."""

    def __init__(self, path: tuple[str | int, ...], why: str) -> None:
        super().__init__(why)
        self.path = path


def message_of(error: Any, known: Sequence[str]) -> str:
    """Say in one line what one of pydantic's errors means; `known` are the keys beside the one that it is about."""
    path, kind, context, found = error["loc"], error["type"], error.get("ctx", {}), error.get("input")
    if kind in ("extra_forbidden", "invalid_key"):
        key = next(part for part in reversed(path) if part != "[key]")
        return f"unknown key{nearest(str(key), known)} (known: {', '.join(known)})"
    if kind == "missing":
        return "is required"
    if kind == "literal_error":
        legal = [name.strip().strip("'") for name in context["expected"].replace(" or ", ", ").split(",")]
        return f"{as_written(found)} is unknown{nearest(str(found), legal)} (known: {', '.join(legal)})"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"expected settings below this key, found {as_written(found)}"
    own_words = error["msg"].removeprefix("Input ").removeprefix("String ")
    return f"{EXPECTED.get(kind, own_words[0].lower() + own_words[1:])}, found {as_written(found)}"


def as_written(value: object) -> str:
    """Write a value much as a sweep file does, at most a line long."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
