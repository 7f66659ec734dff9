"""The JSON files of a run's folder: a file that is not what a sweep writes is named, with what is wrong in it."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from raylth.store.location import Location

__all__ = ["MANIFEST", "STATUS", "RunFileBroken", "is_run", "read_run_file"]

Kind = tuple[str, Callable[[Any], bool]]


class RunFileBroken(ValueError):
    """A file of a run that cannot be used; the text, one line, begins with the file."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_mapping(value: Any, is_value: Callable[[Any], bool] = lambda value: True) -> bool:
    return isinstance(value, dict) and all(map(is_value, value.values()))


def _is_process(value: Any) -> bool:
    """Whether a value is what `raylth.store.process.this_process` returned."""
    if not _is_mapping(value) or not {"boot", "pid", "started"} <= value.keys():
        return False
    return isinstance(value["pid"], int) and value["pid"] > 0 and _is_number(value["started"])


TEXT: Kind = ("text", lambda value: isinstance(value, str))
NUMBER: Kind = ("a number", _is_number)
NUMBER_OR_NONE: Kind = ("a number or null", lambda value: value is None or _is_number(value))
NUMBERS: Kind = ("an object of numbers", lambda value: _is_mapping(value, _is_number))
OBJECT: Kind = ("an object", _is_mapping)
COUNTS: Kind = (
    "an object of each kind's counts",
    lambda value: _is_mapping(value, lambda each: _is_mapping(each, lambda number: isinstance(number, int))),
)
OBJECTS: Kind = ("a list of objects", lambda value: isinstance(value, list) and all(map(_is_mapping, value)))
PROCESS: Kind = ("a process: its boot, pid and started", _is_process)

MANIFEST: dict[str, Kind] = {  # what is read of it; an older version's may lack some
    "written": TEXT, "config": OBJECT, "stages": COUNTS, "failures": OBJECTS, "num_failures": NUMBER,
}  # fmt: skip
STATUS: dict[str, Kind] = {
    "state": TEXT, "time": NUMBER, "host": TEXT, "process": PROCESS, "stages": COUNTS, "epochs_per_second": NUMBER,
    "elapsed_seconds": NUMBER, "left_seconds": NUMBER_OR_NONE, "used": NUMBERS, "note": TEXT, "incidents": NUMBERS,
    "errors": OBJECTS, "num_errors": NUMBER,
}  # fmt: skip
FILES = ("manifest.json", "status.json", "artefacts.json", "settled.json")  # a folder with one of them is a run's


def read_run_file(place: Location, kinds: Mapping[str, Kind] | None = None, needed: Collection[str] = ()) -> dict[str, Any]:
    """Return the object in a JSON file, in which `needed` fields are there and those in `kinds` are of their kinds.

    Raises FileNotFoundError where there is no file, RunFileBroken where it holds something else.
    """
    try:
        found = json.loads(place.read())
    except ValueError as error:
        raise RunFileBroken(f"{place}: not whole JSON ({error})") from error
    if not isinstance(found, dict):
        raise RunFileBroken(f"{place}: should be an object, found {_short(found)}")
    for name in needed:
        if name not in found:
            raise RunFileBroken(f"{place}: has no {name}")
    for name, (expected, fits) in (kinds or {}).items():
        if name in found and not fits(found[name]):
            raise RunFileBroken(f"{place}: {name} should be {expected}, found {_short(found[name])}")
    return found


def is_run(folder: Location) -> bool:
    """Whether a folder, or what has its name, is a run's: a sweep writes one of its files before anything else."""
    return any((folder / name).exists() for name in FILES)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
