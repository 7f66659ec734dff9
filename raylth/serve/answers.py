"""Answers that cost nothing while nothing changes: bytes kept by version, and 304 for a reader who has them."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from raylth import __version__
from raylth.store import Location

__all__ = ["Kept", "answer", "as_json", "tag_of", "version_of"]

PARTS = ("manifest.json", "search.json")  # of a run's folder; a run writes the first one after every table


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
    """What was made last, by name and version: made once, by one thread at a time (pandas and matplotlib share state)."""

    def __init__(self, most: int = 24) -> None:
        self.most = most
        self.lock = threading.Lock()
        self.found: OrderedDict[str, tuple[str, Any]] = OrderedDict()

    def get(self, name: str, version: str, make: Callable[[], Any]) -> Any:
        """Return what is kept under a name in this version; where it is another one, what `make` makes anew."""
        with self.lock:
            kept = self.found.get(name)
            if kept is None or kept[0] != version:
                kept = (version, make())
                self.found[name] = kept
            self.found.move_to_end(name)
            while len(self.found) > self.most:
                self.found.popitem(last=False)
            return kept[1]
