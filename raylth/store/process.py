"""Which process wrote something into a store, so that others can check whether it is still alive."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

__all__ = ["has_ended", "this_process"]

CLOCK_STEP = 10.0  # seconds by which a process's start may seem to move when the clock is set


def this_process() -> dict[str, Any]:
    """Return what identifies this process: the machine's start and the container, its number and its own start."""
    return {"boot": _boot(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def has_ended(found: Mapping[str, Any]) -> bool:
    """Tell whether a process that wrote `this_process()` is known to have ended; nothing is known of other machines'."""
    return bool(found["boot"] == _boot() and not _runs(found["pid"], found["started"]))


def _runs(pid: int, started: float) -> bool:
    """Whether the process of this machine that had this number and began at this time is still there."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < CLOCK_STEP and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # or one of another user, whom /proc does not show (hidepid)
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        except (OSError, OverflowError):
            return False
        return True


def _boot() -> str:
    """Identify this machine since its last start, and the container whose process numbers are meant."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{os.uname().nodename} {psutil.boot_time():.0f}"
