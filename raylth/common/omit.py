"""The one rule that keeps later fields out of keys and names: they are omitted at their defaults."""

from collections.abc import Mapping
from typing import Any

__all__ = ["LATER", "omit_defaults", "without_later"]

LINE = {"temperature": False}
OPTIMIZER = {"optimizer": {"name": "sgd", "betas": [0.9, 0.999], "eps": 1e-8}}
SCALING = {"neuron_scaling": False}
LATER: dict[str, dict[str, Any]] = {  # key path in a sweep file -> fields that were added later, and their defaults
    "": {"mask": {"finder": "imp"}},
    "analyses": {"custom": {}},
    "analyses.imp_line": LINE,
    "analyses.lines": LINE,  # of each
    "analyses.match_quality.line": LINE,
    "connect": LINE,
    "data": {"loader": "auto"},
    "dense": OPTIMIZER,
    "dense.optimizer": SCALING,
    "imp": OPTIMIZER,
    "imp.optimizer": SCALING,
    "mask": {
        "updates": {"every": None, "until": None, "fraction": None},
        "structure": {"pattern": "unstructured"},
    },
    "model": {"options": {}},
    "sparse": OPTIMIZER,
    "sparse.optimizer": SCALING,
}


def without_later(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep's settings without sections and fields that were added later and have their defaults.

    Earlier runs keep their names, and count as equal to later ones in settings that they do not mention.
    """
    return dict(_without("", settings))


def _without(path: str, values: Any) -> Any:
    if isinstance(values, list):
        return [_without(path, each) for each in values]
    if not isinstance(values, Mapping):
        return values
    kept = {name: _without(f"{path}.{name}" if path else name, value) for name, value in values.items()}
    defaults = LATER.get(path, {})
    return omit_defaults(kept, defaults, dict.fromkeys(defaults, ()))


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
