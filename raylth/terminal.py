"""What a command shares with the terminal that it was typed in. Imports nothing heavy: it comes before the rest."""

import os
import signal
import threading
from types import FrameType

__all__ = ["EXIT_INTERRUPTED", "STOPPED_EARLY", "end_at_ctrl_c", "raise_at_ctrl_c"]

EXIT_INTERRUPTED = 130
STOPPED_EARLY = "stopped before anything was started"


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end the process on the spot, with one line and status 130, until `raise_at_ctrl_c`.

    For the seconds in which modules are imported: whoever imports at that moment would print a KeyboardInterrupt, or
    swallow it. Does nothing outside the main thread.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _end)


def raise_at_ctrl_c() -> None:
    """Give Ctrl-C back its usual KeyboardInterrupt, if `end_at_ctrl_c` took it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{STOPPED_EARLY}\n".encode())  # print may be in the middle of something
    os._exit(EXIT_INTERRUPTED)
