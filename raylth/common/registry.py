"""One registry class, one instance per kind of thing that a sweep file can name.

A name is one that was registered, that of an entry point of an installed package, or an import path "package.module:name".
"""

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
LONGEST = 60  # characters of a name in a message
ALMOST = 0.8  # difflib's ratio from which a name with a colon is one that was misspelt, not an import path

__all__ = ["Registry", "UnknownName", "nearest"]


class UnknownName(ValueError):
    """A name that no registry entry has; its text lists the known ones."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ", did you mean 'x'?" for the known name closest to `name`, or an empty text when none is close.

    Upper and lower case are the same, and the part before a colon of a known name may be left out: `resnet18` is closest to
    `torchvision:resnet18`. Of names as close as each other it is the first. `cutoff` is difflib's, between 0 and 1.
    """
    wanted, best, found = name.casefold(), cutoff, None
    matcher = difflib.SequenceMatcher(b=wanted)  # keeps what it learned of b
    for candidate in known:
        for text in dict.fromkeys((candidate.casefold(), candidate.casefold().rpartition(":")[2])):
            matcher.set_seq1(text)
            if matcher.real_quick_ratio() < best or matcher.quick_ratio() < best:
                continue
            close = matcher.ratio()
            if close > best or (found is None and close == best):
                best, found = close, candidate
    return f", did you mean {found!r}?" if found else ""


class Registry(Generic[T]):
    """Named things of one kind, filled by decorator: `@MODELS.register("mlp")`."""

    def __init__(
        self,
        kind: str,
        group: str = "",
        resolve: Callable[[str], T | None] = lambda name: None,
        resolved: Callable[[], list[str]] = list,
    ) -> None:
        self.kind = kind
        self.group = group  # of entry points, through which installed packages add entries
        self.resolve = resolve  # makes an entry of a name that is not filed, None for one that it does not know
        self.resolved = resolved  # lists names that `resolve` knows; asked only where a name is unknown
        self._entries: dict[str, T] = {}
        self._found: dict[str, T] = {}  # apart: what was looked up earlier in a process is not listed as known

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files what it decorates under `name`; a name taken twice raises ValueError."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        try:
            resolved = self.resolve(name)  # not kept: a file can change
        except UnknownName:
            raise
        except Exception as error:  # of a library that builds networks; named in one line
            raise self._not_imported(name, error) from error
        if resolved is not None:
            return resolved
        if name not in self._found:
            found = self._provided(name)
            if found is not None:
                return self._found.setdefault(name, found)
            known = ", ".join(self)
            shown = repr(name) if len(name) <= LONGEST else f"{name[:LONGEST]!r}..."
            raise UnknownName(f"unknown {self.kind} {shown}{nearest(name, self._suggestions())} (known: {known})")
        return self._found[name]

    def _provided(self, name: str) -> T | None:
        """Return what an import path or an installed package's entry point provides under a name."""
        module, separator, attribute = name.partition(":")
        try:
            if separator:
                value: Any = importlib.import_module(module)
                for part in attribute.split("."):
                    value = getattr(value, part)
                return cast(T, value)
            points = entry_points(group=self.group, name=name) if self.group else ()
            return next((cast(T, point.load()) for point in points), None)
        except (Exception, SystemExit) as error:  # what a module of someone else's raises at its import can be anything
            raise self._not_imported(name, error) from error

    def _not_imported(self, name: str, error: BaseException) -> UnknownName:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        close = nearest(name, (other for other in self._suggestions() if other != name), ALMOST)
        return UnknownName(f"{self.kind} {name!r} cannot be imported: {why}{close}")

    def _suggestions(self) -> list[str]:
        """Return all names that can be listed, the registered ones first."""
        return list(dict.fromkeys([*self, *self.resolved()]))

    def __iter__(self) -> Iterator[str]:
        points = entry_points(group=self.group) if self.group else ()
        return iter(sorted({*self._entries, *(point.name for point in points)}))
