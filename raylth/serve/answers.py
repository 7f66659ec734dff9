"""Answers that cost little while nothing changes.

The store is read once in `RECENT` seconds for all readers together; what is made of that is kept by version, and a reader who
has this version gets 304.
"""

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from starlette.requests import Request
from starlette.responses import Response

from raylth import __version__
from raylth.store import Location

__all__ = ["RECENT", "Kept", "Recent", "answer", "as_json", "tag_of", "version_of"]

PARTS = ("manifest.json", "search.json")  # of a run's folder; a run writes the first one after every table

RECENT = 3.0  # seconds; page.js asks every five


def version_of(run: Location) -> str:
    """Return a text that changes whenever a run has written results, and with the version of this package."""
    digest = hashlib.sha256(__version__.encode())
    for name in PARTS:
        try:
            content = (run / name).read()
        except FileNotFoundError:
            content = b""
        digest.update(f"{len(content)} {(run / name).modified() if content else None} ".encode() + content)
    return digest.hexdigest()[:32]


def as_json(value: Any) -> bytes:
    """Return JSON without what browsers cannot read (NaN, infinity: ValueError)."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()


def tag_of(content: bytes) -> str:
    """Return a version of an answer that is known by its content alone."""
    return hashlib.sha256(content).hexdigest()[:32]


def answer(request: Request, version: str, make: Callable[[], bytes], *, media: str = "application/json") -> Response:
    """Return what `make` makes; where the reader has this version, 304 without making anything."""
    tag = f'W/"{version}"'
    known = {each.strip() for each in request.headers.get("If-None-Match", "").split(",")}
    if tag in known or "*" in known:
        return Response(status_code=304, headers={"ETag": tag})
    return Response(make(), media_type=media, headers={"ETag": tag})


class Kept:
    """What was made last, by name and version: made once, by one thread; what has another name does not wait for it."""

    def __init__(self, most: int = 24) -> None:
        self.most = most
        self.lock = threading.Lock()
        self.locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()  # of the names that are in use
        self.found: OrderedDict[str, tuple[Any, Any]] = OrderedDict()

    def get(self, name: str, version: str, make: Callable[[], Any]) -> Any:
        """Return what is kept under a name in this version; where it is another one, what `make` makes anew."""
        return self._get(name, lambda kept: kept == version, lambda: version, make)

    def _get(self, name: str, is_same: Callable[[Any], bool], mark: Callable[[], Any], make: Callable[[], Any]) -> Any:
        with self.lock:
            own = self.locks.setdefault(name, threading.Lock())
        with own:
            with self.lock:
                kept = self.found.get(name)
            if kept is None or not is_same(kept[0]):
                made = make()
                kept = (mark(), made)
            with self.lock:
                self.found[name] = kept
                self.found.move_to_end(name)
                while len(self.found) > self.most:
                    self.found.popitem(last=False)
            return kept[1]


class Recent(Kept):
    """What was read of the store last, by name: read at most once in so many seconds, for all readers."""

    def __init__(self, seconds: float, most: int = 1000) -> None:
        super().__init__(most)
        self.seconds = seconds

    def read(self, name: str, read: Callable[[], Any]) -> Any:
        """Return what `read` returned last; where that is too long ago, what it returns now."""
        return self._get(name, lambda since: time.monotonic() - since < self.seconds, time.monotonic, read)
