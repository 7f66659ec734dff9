"""Notices that the cluster's head is lost: Ray itself would wait a minute, then end the process with its own message."""

import socket
import threading
from collections.abc import Callable
from types import TracebackType

__all__ = ["HeadMonitor"]

INTERVAL = 4.0  # seconds between two looks
FAILURES = 4  # in a row, until the head counts as lost


class HeadMonitor:
    """Looks from a thread whether the head's port answers, and calls `lost` once when it does not. A context manager."""

    def __init__(self, address: str, lost: Callable[[], None]) -> None:
        host, port = address.rsplit(":", 1)
        self.address, self.lost = (host, int(port)), lost
        self._over = threading.Event()

    def __enter__(self) -> "HeadMonitor":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        failures = 0
        while not self._over.wait(INTERVAL):
            try:
                socket.create_connection(self.address, timeout=INTERVAL).close()
                failures = 0
            except OSError:
                failures += 1
            if failures == FAILURES:
                self.lost()
                return
