"""The values that settings are made of: numbers with their bounds, shares of a GPU, names that are known, places."""

import math
import unicodedata
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    PositiveInt,
)
from pydantic_core import core_schema

from raylth.common.paths import expanded
from raylth.common.registry import Registry, UnknownName
from raylth.store import locate

__all__ = [
    "AUTO",
    "MOST_WORKERS",
    "NUMBER",
    "OFF",
    "Count",
    "EngineSetting",
    "Epoch",
    "Folder",
    "GpuCount",
    "GpuShare",
    "Integer",
    "PackSize",
    "Rate",
    "Real",
    "Settings",
    "Sparsity",
    "Width",
    "is_path",
    "is_place",
    "known",
    "one_or_more",
    "unique",
]  # fmt: skip

MOST_WORKERS = 10_000  # that train a network together, and parts that a GPU is shared in
AUTO: Literal["auto"] = "auto"
OFF: Literal["off"] = "off"


class Settings(BaseModel):
    """Closed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class known:
    """The check that a name is in a registry and its object of a class; editors complete the names.

    `public` is the import path of the class that messages give, where it is not its module's.
    """

    def __init__(self, registry: Registry[Any], *kinds: type, public: str | None = None) -> None:
        self.registry, self.kinds = registry, kinds or (object,)
        self.public = public or " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in self.kinds)

    def __call__(self, name: str) -> str:
        """Return the name, or raise ValueError, one line, with what would be right."""
        try:
            found = self.registry[name]
        except UnknownName as error:
            raise ValueError(str(error)) from error
        if not isinstance(found, self.kinds):
            raise ValueError(f"{name!r} is a {type(found).__name__}, not a {self.public}")
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self, handler(source))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"enum": list(self.registry)}, handler(schema)]}


class one_or_more(known):  # an annotation, as `known` is
    """The check of a name, or of a list of different names; a list of one is that name."""

    def __call__(self, names: Any) -> Any:
        """Return the name or the names, or raise ValueError, one line, with what would be right."""
        if isinstance(names, str):
            return super().__call__(names)
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"should be a name, or a list of names, found {names!r:.60}")
        found = unique([super(one_or_more, self).__call__(name) for name in names])
        return found if len(found) > 1 else found[0]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self)  # a union would report each of its parts

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        one = {"anyOf": [{"enum": list(self.registry)}, {"type": "string"}]}
        return {"anyOf": [*one["anyOf"], {"type": "array", "items": one, "minItems": 1}]}


def unique(values: list[Any]) -> list[Any]:
    """Refuse a list that holds a value twice."""
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} is listed twice")
        seen.add(value)
    return values


def is_place(text: str) -> str:
    """Fill in `~` and variables; raise ValueError unless the text is a valid path or bucket URI."""
    is_path(text)
    locate(text)
    return expanded(text)


def is_path(text: str) -> str:
    """Refuse what no file system takes, or no line shows: NUL, ends of lines and other control characters."""
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            raise ValueError(f"{text!r} holds the character {char!r}, which is not allowed in a path")
    return text


# Or a file, of the machine that reads the sweep file.
Folder = Annotated[str, Field(min_length=1), AfterValidator(is_path), AfterValidator(expanded)]


def _gpu_share(value: Any) -> float | Literal["auto"]:
    """Read 0, 1/n ("1/3" too: 0.333 is a guess at it) or auto; other fractions can hang Ray's scheduler (ray #52133)."""
    value = _no_bool(value)
    if value == AUTO:
        return AUTO
    try:
        is_fraction = isinstance(value, str) and "/" in value  # of 1e999999999 Fraction would write out all digits
        share = float(Fraction(value)) if is_fraction else float(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{value!r} is not 0, a fraction such as 1/3, or auto") from error
    if share == 0:
        return 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{value} is not between 0 and 1")
    if share < 1 / MOST_WORKERS:
        raise ValueError(f"{value} is less than 1/{MOST_WORKERS} of a GPU")
    shares = 1 / share
    if abs(shares - round(shares)) > 1e-3 * shares:
        lower = math.floor(shares)
        legal = " or ".join(f"1/{n}" if n > 1 else "1" for n in (lower, lower + 1))
        raise ValueError(f"{share:g} is not 0 or 1/n; the nearest legal shares are {legal}")
    return 1 / round(shares)


def _gpu_count(value: Any) -> float | Literal["auto"]:
    """Read a share of a GPU, or a number of whole ones."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 1:
        if value > MOST_WORKERS:
            raise ValueError(f"{value:g} is more than {MOST_WORKERS:,} GPUs")
        if value != int(value):
            raise ValueError(f"{value:g} is neither a share of one GPU nor a number of whole ones")
        return float(value)
    return _gpu_share(value)


def _pack_size(value: Any) -> int | Literal["auto", "off"]:
    """Read a number of networks, auto, or off, which YAML makes false of."""
    if value in (AUTO, OFF) or value is False:
        return OFF if value is False else value
    if not isinstance(_no_bool(value), int) or value < 1:
        raise ValueError(f"{value!r} is not a positive number of networks, auto, or off")
    return value


def _no_bool(value: Any) -> Any:
    """Refuse what Python would count as 0 or 1."""
    if isinstance(value, bool):
        raise ValueError(f"should be a number, found {str(value).lower()} (as YAML reads yes, no, on and off, too)")
    return value


def _in_64_bits(value: int) -> int:
    """Refuse what numpy, Arrow and torch cannot hold."""
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{value} does not fit in 64 bits")
    return value


NUMBER = BeforeValidator(_no_bool)  # the last of an Annotated: the JSON schema loses a Field behind it
IN_64_BITS = AfterValidator(_in_64_bits)  # no Field, whose bounds would take the place of those that a setting has itself
Integer = Annotated[int, IN_64_BITS, NUMBER]
Count = Annotated[PositiveInt, IN_64_BITS, NUMBER]
Epoch = Annotated[int, Field(ge=0), IN_64_BITS, NUMBER]
Real = Annotated[float, NUMBER]
Sparsity = Annotated[float, Field(gt=0, lt=1, description="Share of the prunable weights that a mask removes."), NUMBER]
Rate = Annotated[float, Field(gt=0, lt=1e3, allow_inf_nan=False), NUMBER]
GpuShare = Annotated[float | Literal["auto"], PlainValidator(_gpu_share, json_schema_input_type=float | str)]
GpuCount = Annotated[float | Literal["auto"], PlainValidator(_gpu_count, json_schema_input_type=float | str)]
EngineSetting = Literal["auto", "eager", "graph", "compiled", "stacked"]
PackSize = Annotated[
    int | Literal["auto", "off"], PlainValidator(_pack_size, json_schema_input_type=int | Literal["auto", "off"])
]
Width = Annotated[float, Field(gt=0, le=64), NUMBER]
