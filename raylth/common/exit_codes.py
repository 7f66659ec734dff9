"""The exit statuses of all commands: what they return, and what their --help says of it."""

import textwrap
from collections.abc import Mapping
from enum import IntEnum

__all__ = ["ExitCode", "describe"]

WIDTH = 110  # characters of a line of help


class ExitCode(IntEnum):
    """A command's exit status; `meaning` is what it says of a sweep. The numbers are part of the interface, for scripts."""

    meaning: str

    OK = 0, "every stage is done (a network that diverged is a result)"
    FAILED = 1, "a stage failed or is blocked"
    BAD_INPUT = 2, "bad input, nothing was started"
    BUDGET = 3, "the budget is used up and stages remain"
    INTERRUPTED = 130, "interrupted"  # 128 + SIGINT, as a shell has it; for SIGTERM and SIGHUP, too

    def __new__(cls, value: int, meaning: str) -> "ExitCode":
        """Return the number, with its meaning."""
        code = int.__new__(cls, value)
        code._value_, code.meaning = value, meaning
        return code


def describe(meanings: Mapping[ExitCode, str] | None = None, more: str = "") -> str:
    """Return the paragraph of a command's help that lists its exit statuses; by default a sweep's, which has them all."""
    meanings = {code: code.meaning for code in ExitCode} if meanings is None else meanings
    listed = "; ".join([*(f"{code:d} {meaning}".strip() for code, meaning in meanings.items()), *filter(None, [more])])
    return textwrap.fill(f"exit status: {listed}", WIDTH)
