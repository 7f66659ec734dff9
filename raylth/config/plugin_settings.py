"""Settings of plug-ins: each is validated by the plug-in's own class, with errors as precise as for built-in settings."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from raylth.common.registry import Registry, UnknownName
from raylth.config.mistakes import BelowKey, message_of
from raylth.config.types import Settings

__all__ = ["read_plugins"]


def read_plugins(
    raw: object, registry: Registry[Any], kind: type[Any], base: type[Settings], *, public: str | None = None
) -> object:
    """Turn `{name of a plug-in: its settings}` into objects of the plug-ins' own classes, each a subclass of `base`.

    Raises BelowKey for a name that `registry` does not have, for one that is no `kind`, and for the first mistake in the
    settings. `public` is the import path of `kind` that messages give, where it is not its module's. What is no mapping is
    returned as it is, for pydantic to refuse.
    """
    if not isinstance(raw, Mapping):
        return raw
    wanted = public or f"{kind.__module__}.{kind.__name__}"
    return {name: _read(str(name), settings, registry, kind, wanted, base) for name, settings in raw.items()}


def _read(name: str, raw: object, registry: Registry[Any], kind: type[Any], wanted: str, base: type[Settings]) -> Settings:
    try:
        plugin: Any = registry[name]
    except UnknownName as error:
        raise BelowKey((name,), str(error)) from error
    if not isinstance(plugin, kind):
        raise BelowKey((name,), f"is a {type(plugin).__name__}, not a {wanted}")
    model = plugin.settings
    if not (isinstance(model, type) and issubclass(model, base)):
        raise BelowKey((name,), f"its settings are not a subclass of {base.__module__}.{base.__name__}")
    if isinstance(raw, model):
        return raw
    if isinstance(raw, Settings):
        raw = raw.model_dump()
    try:
        return model.model_validate({} if raw is None else raw)
    except ValidationError as error:
        detail = error.errors()[0]
        below = tuple(part for part in detail["loc"] if part != "[key]")
        raise BelowKey((name, *below), message_of(detail, list(model.model_fields))) from error
