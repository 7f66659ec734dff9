"""A thread for each exporter, so that a slow or dead server neither holds up a sweep nor ends it."""

import threading
import time
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Protocol

from raylth.trackers.network import Network

__all__ = ["Background", "Exporter"]

FAILURES = 3  # in a row, after which an exporter is switched off
PAUSE = 5.0  # seconds before it is tried again
PATIENCE = 100.0  # seconds without a word from an exporter, at the end of a sweep


class Exporter(Protocol):
    """Writes networks to a tracker, each once."""

    def write(self, network: Network) -> None:
        """Write a network; any exception means that it is worth another try."""


class Background:
    """Hands networks to an exporter one after another, each until it is written; three failures in a row switch it off.

    `setting` is the key path of the exporter's setting, such as log.wandb, with which its notes begin.
    """

    def __init__(self, exporter: Exporter, setting: str, *, pause: float = PAUSE, patience: float = PATIENCE) -> None:
        self.exporter, self.setting, self.pause, self.patience = exporter, setting, pause, patience
        self.queue: SimpleQueue[Network | None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.closing = threading.Event()
        self.heard_at = time.monotonic()
        self.notes: list[str] = []
        self.is_off = False

    def add(self, networks: Iterable[Network]) -> None:
        """Take networks to write; returns at once."""
        for network in networks:
            self.queue.put(network)
        if self.thread is None and not self.queue.empty():
            self.thread = threading.Thread(target=self._work, name=f"raylth-{self.setting}", daemon=True)
            self.heard_at = time.monotonic()
            self.thread.start()

    def close(self, seconds: float = float("inf")) -> None:
        """Wait until all is written: as long as the exporter makes progress, or at most that many seconds."""
        if self.thread is None:
            return
        self.closing.set()
        self.queue.put(None)
        end = time.monotonic() + seconds
        while self.thread.is_alive() and time.monotonic() < min(end, self.heard_at + self.patience):
            self.thread.join(0.05)
        if self.thread.is_alive():
            self._switch_off("not all networks are written in time")
        self.thread = None

    def take_notes(self) -> list[str]:
        """Return what there is to say since the last time, a line each."""
        return [self.notes.pop(0) for _ in range(len(self.notes))]

    def _work(self) -> None:
        while (network := self.queue.get()) is not None:
            failures = 0
            while not self.is_off:
                try:
                    self.exporter.write(network)
                    break
                except Exception as error:
                    failures += 1
                    self.heard_at = time.monotonic()
                    if failures == FAILURES:
                        self._switch_off(f"switched off after {failures} failures in a row: {_line(error)}")
                    elif self.closing.wait(self.pause):
                        time.sleep(min(self.pause, 1.0))
            self.heard_at = time.monotonic()

    def _switch_off(self, reason: str) -> None:
        if not self.is_off:
            self.is_off = True
            then = "the sweep's own results are complete, and the same command writes what is missing there"
            self.notes.append(f"{self.setting}: {reason}; {then}")


def _line(error: Exception) -> str:
    """Return an error as one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
