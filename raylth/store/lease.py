"""Leases: who is computing an artefact now, so that two sweeps on one store do not do the same work at the same time.

A lease is a courtesy, not a lock: whoever loses one still publishes the same bytes under the same key. It ends when it is
given back, when it is not renewed, or when its process is known to be dead.
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

from raylth.store.store import Store, write_atomically

__all__ = ["Lease"]

DURATION = 30.0  # seconds that a lease outlives its last renewal


class Lease:
    """The lease of one key; `held` tells whether it was got. Use as a context manager."""

    def __init__(self, store: Store, key: str) -> None:
        self.path = store.root / "leases" / key[:2] / f"{key}.json"
        self.token = uuid.uuid4().hex
        self.held = False
        self._given_back = threading.Event()

    def __enter__(self) -> "Lease":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            if not self._is_over():
                return self
            write_atomically(self.path, self._content())
            self.held = self._read().get("token") == self.token  # another may have taken it over at the same moment
        else:
            with os.fdopen(handle, "wb") as file:
                file.write(self._content())
            self.held = True
        if self.held:
            threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._given_back.set()
        if self.held:
            self.path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._given_back.wait(DURATION / 3):
            with contextlib.suppress(OSError):  # a store that is away for a while: the lease may end, nothing breaks
                write_atomically(self.path, self._content())

    def _content(self) -> bytes:
        process = {"boot": _boot(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        return json.dumps({"token": self.token, "until": time.time() + DURATION, **process}).encode()

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return found

    def _is_over(self) -> bool:
        """Whether the lease that is there has ended, or its process is a dead one of this machine."""
        found = self._read()
        if not found:  # given back just now, or written just now
            return not self.path.exists() or time.time() - self.path.stat().st_mtime > DURATION
        if found["until"] < time.time():
            return True
        if found["boot"] != _boot():
            return False
        try:
            return bool(psutil.Process(found["pid"]).create_time() != found["started"])
        except psutil.NoSuchProcess:
            return True


def _boot() -> str:
    """Identify this machine since its last start."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{os.uname().nodename} {psutil.boot_time():.0f}"
