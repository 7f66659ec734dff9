"""A trace of what workers do, for those who ask for it: `RAYLTH_TRACE=FILE`, set where Ray is started.

Every worker appends a line of JSON per event: `began` and `ended` of a stage, and `epochs` in between (the first of a
training counts the epochs that a saved state held, every later one is one epoch that was trained).
"""

import json
import os
import time

__all__ = ["VARIABLE", "Trace"]

VARIABLE = "RAYLTH_TRACE"


class Trace:
    """One process's end of the trace; without the variable it does nothing."""

    def __init__(self) -> None:
        path = os.environ.get(VARIABLE)
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if path else None

    def __call__(self, event: str, key: str, **more: str | int) -> None:
        """Append one event of the stage `key`: one write, so that lines of several processes never mix."""
        if self.file is not None:
            line = {"time": time.time(), "pid": os.getpid(), "event": event, "key": key, **more}
            os.write(self.file, (json.dumps(line) + "\n").encode())
