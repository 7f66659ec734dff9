"""Counts trained epochs across workers, so that the driver can show progress inside long stages."""

import time
from typing import Any

__all__ = ["EpochCounter", "EpochReporter"]

INTERVAL = 0.5  # seconds between a worker's messages


class EpochCounter:
    """Counts the epochs that all workers have trained in this run; an actor can be one beside its work."""

    def __init__(self) -> None:
        self.epochs, self.since = 0, time.time()

    def add(self, epochs: int) -> None:
        """Count more trained epochs."""
        self.epochs += epochs

    def read(self) -> tuple[float, int]:
        """Return when this counter started, which identifies it, and the number of epochs trained since."""
        return self.since, self.epochs


class EpochReporter:
    """A worker's reporter: collects epochs and sends them to the counter at most twice a second."""

    def __init__(self, counter: Any) -> None:
        self.counter, self.epochs, self.sent = counter, 0, time.monotonic()

    def __call__(self, epochs: int) -> None:
        """Count `epochs` more; they are sent with the next message."""
        self.epochs += epochs
        if time.monotonic() - self.sent > INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Send what was collected, without waiting."""
        if self.epochs:
            self.counter.add.remote(self.epochs)
        self.epochs, self.sent = 0, time.monotonic()
