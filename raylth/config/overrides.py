"""A sweep's settings with some of them changed, as a search changes them."""

from collections.abc import Mapping
from typing import Any

from raylth.config.sweep import SweepConfig

__all__ = ["changed"]


def changed(config: SweepConfig, values: Mapping[str, Any]) -> SweepConfig:
    """Return the settings with values put at key paths ("sparse.lr"); one value for a list becomes a list of it.

    Raises ValueError that names the key path which does not exist, and what the settings themselves refuse.
    """
    raw: dict[str, Any] = config.model_dump(mode="json")
    for path, value in values.items():
        *sections, name = path.split(".")
        node: Any = raw
        for part in sections:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name not in node:
            raise ValueError(f"{path}: there is no such setting")
        is_list = isinstance(node[name], list) and not isinstance(value, list)
        node[name] = [value] if is_list else value
    return SweepConfig.model_validate(raw)
