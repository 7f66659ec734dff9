"""The journal of a search's Optuna studies: kept in the store, whole again after a process that died while it wrote."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from raylth.store import Location
from raylth.store.location import DiskLocation

__all__ = ["JOURNAL", "opened_journal"]

JOURNAL = "studies.log"


@contextlib.contextmanager
def opened_journal(folder: Location, note: Callable[[str], None]) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Give the studies' journal as a file, and what keeps it: nothing on a disk, a copy to the bucket elsewhere.

    The caller holds the search's lease, so a lock that lies there is a dead process's, and is removed: Optuna would wait
    for it. `note` is called with a line where the journal was cut or harmed, see `_mend`.
    """
    if isinstance(folder, DiskLocation):
        folder.path.mkdir(parents=True, exist_ok=True)
        file = folder.path.absolute() / JOURNAL  # Optuna's lock is a link that must not depend on the working folder
        for lock in folder.path.glob(f"{JOURNAL}.lock*"):
            lock.unlink(missing_ok=True)
        _mend(file, note)
        yield file, lambda: None
        return
    with tempfile.TemporaryDirectory(prefix="raylth-journal-") as scratch:
        file = Path(scratch) / JOURNAL
        with contextlib.suppress(FileNotFoundError):
            file.write_bytes((folder / JOURNAL).read())

        def keep() -> None:
            with contextlib.suppress(OSError):  # written with the next one
                (folder / JOURNAL).write(file.read_bytes())

        def keep_aside(line: str) -> None:
            for aside in Path(scratch).glob(f"{JOURNAL}.harmed-*"):
                (folder / aside.name).write(aside.read_bytes())
            note(line)

        _mend(file, keep_aside)
        try:
            yield file, keep
        finally:
            if file.exists() and os.path.getsize(file):
                keep()


def _mend(file: Path, note: Callable[[str], None]) -> None:
    """Cut a journal before its first line that is no record, which Optuna refuses to read; trials of that end run again.

    A last line without its end is what a process leaves that dies while it writes. Anything more is harm: the whole file is
    kept beside, as `studies.log.harmed-<time>`.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return
    lines = content.splitlines(keepends=True)
    whole = next((number for number, line in enumerate(lines) if not _is_record(line)), len(lines))
    if whole == len(lines):
        return
    if whole < len(lines) - 1:
        aside = file.with_name(f"{JOURNAL}.harmed-{int(time.time())}")
        aside.write_bytes(content)
        note(
            f"{file}: line {whole + 1} of {len(lines)} is no record of a study; the search continues from what is before it, "
            f"and the whole is kept as {aside.name}"
        )
    else:
        note(f"{file}: its incomplete last record is dropped")
    with file.open("r+b") as journal:
        journal.truncate(sum(map(len, lines[:whole])))
        os.fsync(journal.fileno())


def _is_record(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        found = json.loads(line)
    except ValueError:  # also bytes that are not UTF-8
        return False
    return isinstance(found, dict) and isinstance(found.get("op_code"), int)
