"""The one rule that keeps later fields out of keys and names: they are omitted at their defaults."""

from collections.abc import Mapping
from typing import Any

__all__ = ["LATER", "omit_defaults", "without_later"]

OPTIMIZER = {"optimizer": {"name": "sgd", "betas": [0.9, 0.999], "eps": 1e-8}}
LATER: dict[str, dict[str, Any]] = {  # section of a sweep file -> fields that were added later, and their defaults
    "analyses": {"custom": {}},
    "dense": OPTIMIZER,
    "imp": OPTIMIZER,
    "mask": {"structure": {"pattern": "unstructured"}},
    "model": {"options": {}},
    "sparse": OPTIMIZER,
}
LATER_SECTIONS: dict[str, Any] = {"mask": {"finder": "imp"}}


def without_later(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep's settings without sections and fields that were added later and have their defaults.

    Earlier runs keep their names, and count as equal to later ones in settings that they do not mention.
    """
    kept = {section: _without(section, values) for section, values in settings.items()}
    return omit_defaults(kept, LATER_SECTIONS, dict.fromkeys(LATER_SECTIONS, ()))


def _without(section: str, values: Any) -> Any:
    defaults = LATER.get(section)
    return (
        omit_defaults(values, defaults, dict.fromkeys(defaults, ())) if defaults and isinstance(values, Mapping) else values
    )


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
