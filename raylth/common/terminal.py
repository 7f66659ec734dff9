"""What a command shares with the terminal that it was typed in. Imports nothing heavy: it comes before the rest."""

import contextlib
import errno
import io
import os
import select
import sys
import warnings
from collections.abc import Callable
from typing import IO, Any, NoReturn, cast

from raylth.common.exit_codes import ExitCode

__all__ = ["leave", "run", "typed_python"]


def run(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; when its reader leaves (`| head`), it ends quietly with status 0.

    A terminal that is closed ends the command by SIGHUP, where that is not ignored, and never by an error of a write.
    """
    warnings.formatwarning = _format_warning
    for name in ("stdout", "stderr"):
        setattr(sys, name, _without_hangup(getattr(sys, name)))
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        return ExitCode.OK


def leave(status: int) -> NoReturn:
    """End the process with a status, at once: nothing of ours is left to do.

    The libraries' own ends are skipped: a thread of theirs that is still about can abort a process that is done ("terminate
    called without an active exception", seen once in some hundred sweeps).
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def typed_python() -> str:
    """Return this interpreter as a person here types it: from the current folder, by its name alone, or its whole path."""
    import shutil
    from pathlib import Path

    python = Path(sys.executable)
    if python.parent == Path.cwd():
        return f"./{python.name}"
    if python.is_relative_to(Path.cwd()):
        return str(python.relative_to(Path.cwd()))
    return python.name if shutil.which(python.name) == str(python) else str(python)


class _Terminal(io.FileIO):
    """A terminal to which writing goes on when it has been closed: the kernel refuses writes before it sends SIGHUP."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(data).nbytes


def _without_hangup(stream: Any) -> Any:
    """Return a text stream that writes as `stream` does, to the same terminal; `stream` itself where it is none."""
    if not isinstance(stream, io.TextIOWrapper) or not stream.isatty():
        return stream
    stream.flush()
    raw = _Terminal(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        cast(IO[bytes], raw if stream.write_through else io.BufferedWriter(raw)),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Write what this package warns of as its line alone; others' warnings name their place in one line, too."""
    return f"{message}\n" if category is UserWarning else f"{category.__name__}: {message}\n"


def _reader_left() -> bool:
    """Return whether nobody reads standard output any more; what is still to be written is discarded then."""
    try:
        output = sys.stdout.fileno()
    except io.UnsupportedOperation:
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
