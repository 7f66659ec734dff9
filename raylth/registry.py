"""One registry class, one instance per kind of thing that a sweep file can name."""

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

__all__ = ["Registry", "UnknownName", "nearest"]


class UnknownName(ValueError):
    """A name that no registry entry has; its text lists the known ones."""


def nearest(name: str, known: list[str]) -> str:
    """Return ", did you mean 'x'?" for the known name closest to `name`, or an empty text when none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """Named things of one kind, filled by decorator: `@MODELS.register("mlp")`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files what it decorates under `name`; a name taken twice raises ValueError."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            known = ", ".join(self)
            raise UnknownName(f"unknown {self.kind} {name!r}{nearest(name, list(self))} (known: {known})")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries
