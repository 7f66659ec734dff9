"""Paths as people write them: `~` is a home folder, `$NAME` a variable of the environment."""

import os
import re

__all__ = ["contracted", "expanded"]

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expanded(path: str) -> str:
    """Return a path with its `~`, `~user`, `$NAME` and `${NAME}` filled in; what names a bucket stays as it is.

    Raises ValueError, one line, where there is no such home folder or variable: it would name a new folder literally.
    """
    if "://" in path:
        return path
    for found in VARIABLE.finditer(path):
        name = found[1] or found[2]
        if not name[0].isdigit() and name not in os.environ:
            raise ValueError(f"{path!r}: the environment has no variable {name}")
    filled = os.path.expanduser(VARIABLE.sub(lambda found: os.environ.get(found[1] or found[2], found[0]), path))
    if filled.startswith("~"):
        raise ValueError(
            f"{path!r}: there is no home folder {filled.partition('/')[0]!r} (write ./{path} for a file of that name)"
        )
    return filled


def contracted(path: str) -> str:
    """Return a path below the own home folder as `~/...`, as another machine may read it."""
    home = os.path.expanduser("~").rstrip("/")
    return f"~{path[len(home) :]}" if home and path.startswith(f"{home}/") else path
