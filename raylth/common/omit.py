"""The one rule that keeps later fields out of keys and names: they are omitted at their defaults."""

from collections.abc import Mapping
from typing import Any

__all__ = ["omit_defaults"]


def omit_defaults(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], later: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Return `settings` without those fields of `later` that have their default, so that what existed before keeps its name.

    `later` maps each such field to the fields that mean nothing while it has its default; they are omitted with it.
    """
    omitted = {
        name
        for field, dependent in later.items()
        if field in settings and settings[field] == defaults[field]
        for name in (field, *dependent)
    }
    return {name: value for name, value in settings.items() if name not in omitted}
