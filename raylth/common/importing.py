"""Importing without the garbage collector, and only when needed. Imports nothing heavy: it comes before the rest."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["on_first_use", "uncollected"]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector still: what modules make stays, and to search it again and again is a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def on_first_use(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return a package's `__getattr__` (PEP 562), which imports `names`, module -> names in it, when one is first used.

    No name may be that of a module of the package, which would take its place once it is imported.
    """
    modules = {name: module for module, defined in names.items() for name in defined}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
