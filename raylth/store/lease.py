"""Leases: who is computing an artefact now, so that two sweeps on one store do not do the same work at the same time.

Whoever wants one writes a claim of its own and then looks for others: two that claim at once see each other, whatever the
medium, and both step back. A lease is a courtesy, not a lock: whoever loses one still publishes the same bytes under the
same key. It ends when it is given back, when it is not renewed, or when its process is known to be dead.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from raylth.store.store import Store

__all__ = ["Lease"]

DURATION = 30.0  # seconds that a lease outlives its last renewal
CLOCK_STEP = 10.0  # seconds by which a process's start may seem to move when the clock is set


class Lease:
    """The lease of one key; `held` tells whether it was got. Use as a context manager."""

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
        process = {"boot": _boot(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        self.claim.write(json.dumps({"until": time.time() + DURATION, **process}).encode(), durable=False)

    def _is_live(self, name: str) -> bool:
        """Whether a claim counts: it has not ended, and its process is not a dead one of this machine. If not, remove it."""
        claim = self.folder / name
        try:
            found: dict[str, Any] = json.loads(claim.read())
            is_over = found["until"] < time.time()
            is_over = is_over or (found["boot"] == _boot() and not _runs(found["pid"], found["started"]))
        except FileNotFoundError:  # given back just now
            return False
        except (ValueError, KeyError, TypeError):  # cut off by a power failure: a claim that is written appears whole
            is_over = True
        if is_over:
            claim.remove()
        return not is_over


def _runs(pid: int, started: float) -> bool:
    """Whether the process of this machine that had this number and began at this time is still there."""
    try:
        return abs(psutil.Process(pid).create_time() - started) < CLOCK_STEP
    except psutil.NoSuchProcess:
        return False


def _boot() -> str:
    """Identify this machine since its last start, and the container whose process numbers are meant."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{os.uname().nodename} {psutil.boot_time():.0f}"
