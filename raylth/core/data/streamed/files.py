"""Files on a disk or in a bucket (`s3://bucket/key?options`, `gs://...`), as far as images are read from them."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow import fs

__all__ = ["below", "copy", "is_remote", "locate_file"]

PIECE = 64 * 2**20  # bytes that are copied at once
PIECES = 8  # at a time: one stream of a bucket is slower than a disk


def is_remote(place: str) -> bool:
    """Whether a place is a bucket's."""
    return "://" in place


def below(place: str, name: str) -> str:
    """Return the file `name` of a folder or of a bucket's prefix; a local path comes back absolute."""
    if not is_remote(place):
        return str((Path(place) / name).absolute())
    prefix, mark, options = place.partition("?")
    return f"{prefix.rstrip('/')}/{name}{mark}{options}"


def locate_file(place: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a place, and its path there."""
    if not is_remote(place):
        return fs.LocalFileSystem(), str(Path(place).absolute())
    system, path = fs.FileSystem.from_uri(place)
    return system, path


def copy(place: str, target: Path) -> None:
    """Copy a file to this machine, several pieces at a time; OSError when that fails."""
    system, path = locate_file(place)
    with system.open_input_file(path) as source, target.open("wb") as file, ThreadPoolExecutor(PIECES) as pool:

        def piece(offset: int) -> None:
            wanted = min(PIECE, size - offset)
            data = source.read_at(wanted, offset)
            if len(data) < wanted or os.pwrite(file.fileno(), data, offset) < wanted:
                raise OSError(f"{place}: {wanted:,} bytes at byte {offset:,} were not copied completely")

        size = source.size()
        for _ in pool.map(piece, range(0, size, PIECE)):
            pass
