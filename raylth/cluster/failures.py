"""Why a worker ended, and what to do about it: preempted, out of memory and crashed are different things."""

import contextlib

import ray

from raylth.cluster import ray_private
from raylth.core.memory import DeviceLost, is_out_of_memory
from raylth.stages import Preempted, Stage, divergence
from raylth.store import BrokenArtefact, Store

__all__ = [
    "CRASHED",
    "NOT_STARTED",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "UNREACHABLE",
    "WHAT",
    "cause_of",
    "delay",
    "given_up",
    "published",
]

PREEMPTED, OUT_OF_MEMORY, CRASHED = "preempted", "out of memory", "crashed"
UNREACHABLE = "storage unreachable"
# Tune ended an actor that was still starting, because another had become free; or an idle one died.
NOT_STARTED = "not started"
WHAT = {
    PREEMPTED: "its worker was preempted",
    OUT_OF_MEMORY: "out of memory",
    CRASHED: "its worker process died",
    NOT_STARTED: "its worker process did not start",
    UNREACHABLE: "the store did not answer",
}
LONGEST_DELAY = 60.0  # seconds
MOST_UNREACHABLE = 10  # times that a stage meets a store that does not answer; with the waits about 6 minutes


def cause_of(error: BaseException | None) -> str:
    """Tell from what Ray reports about a trial's actor why it ended."""
    if isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    if isinstance(error, Preempted) or ray_private.is_preempted(error):
        return PREEMPTED
    if ray_private.is_never_started(error):
        return NOT_STARTED
    if error is None or isinstance(error, DeviceLost):  # whose text may hold any CUDA error
        return CRASHED
    is_killed = isinstance(error, ray.exceptions.OutOfMemoryError) or ray_private.is_killed_for_memory(error)
    if is_killed or is_out_of_memory(error):
        return OUT_OF_MEMORY
    return CRASHED


def delay(times: int) -> float:
    """Return the seconds to wait before a stage is restarted for the `times`-th time: 1, 2, 4, ... 60."""
    return min(LONGEST_DELAY, 2.0 ** (times - 1))


def given_up(cause: str, times: int, retries: int, detail: str) -> str | None:
    """Return why a stage that failed this many times for a cause is not restarted, None when it is."""
    if cause in (CRASHED, NOT_STARTED) and times > retries:
        return f"its worker process died {times} times: {detail}"
    if cause == UNREACHABLE and times > MOST_UNREACHABLE:
        return f"the store did not answer {times} times: {detail}"
    return None


def published(stage: Stage, store: Store) -> tuple[bool, str | None]:
    """Return whether a worker published all of a stage before it ended, and how the training diverged, if it did.

    A store that does not answer, or has what is broken, is one that does not have it.
    """
    with contextlib.suppress(OSError, BrokenArtefact):
        if not store.has(stage.key):
            return False, None
        reason = divergence(store.metrics(stage.key))
        if reason is None and not all(store.has(key) for key in stage.produces):
            return False, None
        store.drop_state(stage.key)
        return True, reason
    return False, None
