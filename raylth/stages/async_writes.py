"""Writes to the store in the background of a training."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

__all__ = ["Uploads"]

MOST_PENDING = 2  # what waits is in memory, as big as a network


class Uploads:
    """Does writes in a thread, in the order in which they come. Use as a context manager: leaving it waits for all.

    A write that fails ends those behind it, and its error comes out of the next `submit` or `wait`.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)  # its thread starts with the first write
        self._pending: list[Future[None]] = []
        self._error: BaseException | None = None

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self.wait()

    def submit(self, write: Callable[[], None]) -> None:
        """Have `write` done soon; it must own what it writes. Waits while too much is pending."""
        while len(self._pending) >= MOST_PENDING:
            self._pending.pop(0).result()
        self._raise()
        self._pending.append(self._pool.submit(self._do, write))

    def wait(self) -> None:
        """Wait until everything is written."""
        self.drain()
        self._raise()

    def drain(self) -> None:
        """Wait until nothing is pending; an error that came up stays for the next `submit` or `wait`."""
        while self._pending:
            self._pending.pop(0).result()

    def _do(self, write: Callable[[], None]) -> None:
        if self._error is None:
            try:
                write()
            except BaseException as error:
                self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
