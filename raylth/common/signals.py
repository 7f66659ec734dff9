"""What SIGINT, SIGTERM and SIGHUP do to a command: the first ends it in order, the next ones of these seconds do nothing.

Ctrl-C is often pressed several times; only one that comes later than that ends the process on the spot. SIGHUP comes when a
terminal is closed: what would be printed there is discarded then, instead of raising an error. A SIGTERM or SIGHUP that was
ignored when the command was started (`nohup`) stays ignored. Imports nothing heavy: it comes before the rest.
"""

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from raylth.common.exit_codes import ExitCode

__all__ = ["STOPPED_EARLY", "Asked", "deferred", "end_at_once", "raise_in_order", "shielded", "was_asked"]

STOPPED_EARLY = "stopped before anything was started"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_SECONDS = 5.0  # after the first signal, in which others mean the same


class Asked:
    """Whether, when and by which signal this process was asked to end."""

    def __init__(self) -> None:
        self.by: int | None = None
        self.at = 0.0
        self.is_deferred = False
        self.process = os.getpid()

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal: raise KeyboardInterrupt for the first, unless that is deferred; later ones see above."""
        if os.getpid() != self.process:  # a forked one: it ends as it would by itself
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        if self.by is None:
            self.by, self.at = number, time.monotonic()
            if not self.is_deferred:
                raise KeyboardInterrupt
        elif time.monotonic() - self.at > SAME_SECONDS:
            _write("\nended at once; what was finished is in the store\n")
            os._exit(ExitCode.INTERRUPTED)

    @property
    def why(self) -> str:
        """The signal's name for people; nothing for Ctrl-C, which they know of."""
        names: dict[int, str] = {signal.SIGTERM: " (SIGTERM)", signal.SIGHUP: " (SIGHUP: its terminal was closed)"}
        return names.get(self.by or 0, "")


_asked = Asked()  # of a command, which is asked once


def end_at_once() -> None:
    """Let Ctrl-C end the process on the spot, with one line and status 130, until `raise_in_order`.

    For the seconds in which modules are imported: an import at that moment would print a KeyboardInterrupt, or
    swallow it. Does nothing outside the main thread.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _end)


def raise_in_order() -> None:
    """Let the first signal raise KeyboardInterrupt in the main thread, for the rest of the command after `end_at_once`."""
    if signal.getsignal(signal.SIGINT) is _end:
        for number in SIGNALS:
            _install(number, _asked.handle)


def was_asked() -> Asked:
    """Return what this command was asked."""
    return _asked


@contextlib.contextmanager
def deferred() -> Iterator[Asked]:
    """Give what this process is asked, as a value to look at: a signal that comes meanwhile raises at the end only."""
    if threading.current_thread() is not threading.main_thread():
        yield Asked()
        return
    is_command = signal.getsignal(signal.SIGINT) == _asked.handle
    asked = _asked if is_command else Asked()
    before = {number: _install(number, asked.handle) for number in SIGNALS}
    asked.is_deferred = True
    try:
        yield asked
    finally:
        asked.is_deferred = False
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked.by is not None:  # after the last look at it
        raise KeyboardInterrupt


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Start and end Ray in this: handlers stay ours, and its processes never get SIGHUP, since this one ends them.

    Ray has a SIGTERM handler of its own, which exits; that is KeyboardInterrupt here, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # which processes inherit
    try:
        yield
    except SystemExit as error:
        _asked.by, _asked.at = _asked.by or signal.SIGTERM, time.monotonic()
        raise KeyboardInterrupt from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _install(number: int, handler: Any) -> Any:
    """Set a handler; returns the one before, which stays where it ignores a signal that is not Ctrl-C's."""
    before = signal.getsignal(number)
    if before is not signal.SIG_IGN or number == signal.SIGINT:
        signal.signal(number, handler)
    return before


def _leave_closed_terminal() -> None:
    """Let what is printed to a terminal that is gone go nowhere: a write to it would be an error."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _end(number: int, frame: FrameType | None) -> None:
    _write(f"{STOPPED_EARLY}\n")
    os._exit(ExitCode.INTERRUPTED)


def _write(text: str) -> None:
    """Write to standard error past `print`, which may be in the middle of something; to a closed terminal, nothing."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
