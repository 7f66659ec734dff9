"""Leases: who is computing an artefact now, so that two sweeps on one store do not do the same work at the same time.

A process that wants one writes a claim of its own and then looks for others: two that claim at once see each other, whatever
the medium, and both step back. A lease is a courtesy, not a lock: a process that loses one still publishes the same bytes
under the same key. It ends when it is given back, when it is not renewed, or when its process is known to be dead.
"""

import contextlib
import json
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from raylth.store.location import Location
from raylth.store.process import has_ended, this_process
from raylth.store.store import Store

__all__ = ["Lease", "leased"]

DURATION = 30.0  # seconds that a lease outlives its last renewal


class Lease:
    """The lease of one key; `held` is whether it was acquired. Use as a context manager."""

    def __init__(self, store: Store, key: str) -> None:
        self.key, self.folder = key, store.root / "leases" / key[:2]
        self.claim = self.folder / f"{key}.{uuid.uuid4().hex}.json"
        self.held = False
        self._given_back = threading.Event()

    def __enter__(self) -> "Lease":
        try:
            self._claim()
        except BaseException:
            with contextlib.suppress(OSError):
                self.claim.remove()
            raise
        return self

    def _claim(self) -> None:
        self._write()
        others = [name for name in self.folder.names() if name.startswith(self.key) and name != self.claim.name]
        self.held = not any(self._is_live(name) for name in others)
        if self.held:
            threading.Thread(target=self._renew, daemon=True).start()
        else:
            self.claim.remove()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._given_back.set()
        if self.held:
            with contextlib.suppress(OSError):  # a store that is away for a while: the claim ends by itself
                self.claim.remove()

    def _renew(self) -> None:
        while not self._given_back.wait(DURATION / 3):
            with contextlib.suppress(OSError):
                self._write()
        with contextlib.suppress(OSError):
            self.claim.remove()  # given back while it was being renewed

    def _write(self) -> None:
        claim = {"until": time.time() + DURATION, **this_process()}
        self.claim.write(json.dumps(claim).encode(), durable=False)

    def _is_live(self, name: str) -> bool:
        """Whether a claim counts: it has not ended, and its process is not a dead one of this machine. If not, remove it."""
        claim = self.folder / name
        is_over = _is_over(claim)
        if is_over:
            claim.remove()
        return not is_over


def leased(store: Store) -> set[str]:
    """Return the keys that living processes hold, as far as this machine knows; nothing is written."""
    folder = store.root / "leases"
    return {path.rpartition("/")[2].partition(".")[0] for path in folder.files() if not _is_over(folder / path)}


def _is_over(claim: Location) -> bool:
    try:
        found: dict[str, Any] = json.loads(claim.read())
        return bool(found["until"] < time.time() or has_ended(found))
    except FileNotFoundError:  # given back just now
        return True
    except (ValueError, KeyError, TypeError):  # cut off by a power failure: a claim that is written appears whole
        return True
