"""Where bytes are stored: a folder of a disk or of NFS, or a prefix of a bucket (s3://, gs://), behind one small interface.

Both keep one promise: what is written under a name is there completely or not at all, whatever dies meanwhile.
"""

import contextlib
import functools
import os
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import tenacity

from raylth.common.paths import expanded

__all__ = ["BucketLocation", "DiskLocation", "Location", "StorageUnreachable", "locate", "write_atomically"]

T = TypeVar("T")

SCHEMES = ("s3", "gs", "gcs")
ATTEMPTS = 6  # of one request to a bucket, with waits of 0.5, 1, 2, 4, 8 s between them
USELESS_TO_REPEAT = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "not found")


class StorageUnreachable(OSError):
    """A bucket that did not answer as it should, however often it was asked; the text names the object."""


class Location(ABC):
    """A file or a folder; it need not exist. A value: names in, bytes out."""

    parallel: int  # requests that are worth making at a time

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @abstractmethod
    def __truediv__(self, name: str) -> "Location":
        """Return the location `name` below this one; `name` may hold slashes."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of the path."""

    @property
    @abstractmethod
    def parent(self) -> "Location":
        """The folder that this is in."""

    @abstractmethod
    def absolute(self) -> "Location":
        """Return the same location for a process that works in another folder."""

    @abstractmethod
    def read(self) -> bytes:
        """Return a file's bytes; FileNotFoundError when it is not there."""

    @abstractmethod
    def write(self, data: bytes, *, durable: bool = True) -> None:
        """Write a file, all of it or nothing, replacing what was there; folders are created as needed.

        With `durable` it is on the medium when this returns. Raises OSError; nothing half-written is visible.
        """

    @abstractmethod
    def exists(self) -> bool:
        """Tell whether there is such a file."""

    @abstractmethod
    def modified(self) -> float | None:
        """Return when a file was written last, in seconds since 1970; None where that is not known."""

    @abstractmethod
    def check_writable(self) -> None:
        """Raise OSError unless files can be written here; leaves nothing behind."""

    @abstractmethod
    def names(self, *, also_empty: bool = False) -> list[str]:
        """Return the names of a folder's files and folders but hidden ones, sorted; none when it is not there.

        With `also_empty` folders from which all was removed may be among them: S3 is then not asked for all that lies below.
        """

    @abstractmethod
    def files(self) -> dict[str, int]:
        """Return every file below a folder: its path from there, and its size in bytes."""

    @abstractmethod
    def remove(self) -> None:
        """Remove a file, or a folder with everything below it; nothing happens when it is not there."""

    @abstractmethod
    def move(self, target: "Location") -> None:
        """Move a folder to `target`, which is of the same kind; the target's folder is created as needed."""


class DiskLocation(Location):
    """A path of a file system that renames atomically: a local disk, or NFS."""

    parallel = 2  # hashing leaves the interpreter to others; reading small files does not

    def __init__(self, path: str | Path) -> None:
        self._path = os.fspath(path)  # text: a store makes tens of thousands of these

    @property
    def path(self) -> Path:
        """The path for those who work with files themselves."""
        return Path(self._path)

    def __truediv__(self, name: str) -> "DiskLocation":
        return DiskLocation(f"{self._path}/{name}")

    def __str__(self) -> str:
        return self._path

    @property
    def name(self) -> str:
        return os.path.basename(self._path)

    @property
    def parent(self) -> "DiskLocation":
        return DiskLocation(os.path.dirname(self._path) or ".")

    def absolute(self) -> "DiskLocation":
        return DiskLocation(os.path.realpath(self._path))

    def read(self) -> bytes:
        try:
            with open(self._path, "rb") as file:
                return file.read()
        except NotADirectoryError as error:  # what should be a folder is a file
            raise FileNotFoundError(*error.args) from error

    def write(self, data: bytes, *, durable: bool = True) -> None:
        write_atomically(self.path, data, durable=durable)

    def exists(self) -> bool:
        return os.path.exists(self._path)

    def modified(self) -> float | None:
        with contextlib.suppress(OSError):
            return os.stat(self._path).st_mtime
        return None

    def check_writable(self) -> None:
        folder = self.path.absolute()
        while not folder.exists():
            folder = folder.parent
        tempfile.TemporaryFile(dir=folder).close()

    def names(self, *, also_empty: bool = False) -> list[str]:
        try:
            return sorted(filter(_is_ours, os.listdir(self._path)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self) -> dict[str, int]:
        found = {}
        for folder, below, names in os.walk(self._path):
            below[:] = filter(_is_ours, below)  # os.walk goes into these
            here = os.path.relpath(folder, self._path)
            for name in filter(_is_ours, names):
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    size = os.stat(f"{folder}/{name}").st_size
                    found[name if here == "." else f"{here}/{name}"] = size
        return found

    def remove(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except (IsADirectoryError, PermissionError):  # macOS says the latter of a folder
            shutil.rmtree(self._path, ignore_errors=True)

    def move(self, target: Location) -> None:
        assert isinstance(target, DiskLocation)
        target.path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._path, target._path)


class BucketLocation(Location):
    """A prefix of a bucket, through `pyarrow.fs`. A written object appears whole when its upload ends.

    Requests are repeated; StorageUnreachable comes out when that does not help.
    """

    parallel = 32

    def __init__(self, system: Any, path: str, prefix: str, query: str) -> None:
        self.system, self.path = system, path.strip("/")
        self.prefix, self.query = prefix, query  # "s3://" or "gs://user@", and pyarrow's options

    def __truediv__(self, name: str) -> "BucketLocation":
        return BucketLocation(self.system, f"{self.path}/{name}", self.prefix, self.query)

    def __str__(self) -> str:
        return f"{self.prefix}{self.path}{'?' + self.query if self.query else ''}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> "BucketLocation":
        return BucketLocation(self.system, self.path.rpartition("/")[0], self.prefix, self.query)

    def absolute(self) -> "BucketLocation":
        return self

    def read(self) -> bytes:
        def read() -> bytes:
            with self.system.open_input_stream(self.path) as stream:
                data: bytes = stream.read()
            return data

        return self._ask(read)

    def write(self, data: bytes, *, durable: bool = True) -> None:
        def write() -> None:
            with self.system.open_output_stream(self.path) as stream:
                stream.write(data)
            size = self.system.get_file_info(self.path).size
            if size != len(data):
                raise OSError(f"{size} of {len(data)} bytes received")

        self._ask(write)

    def exists(self) -> bool:
        from pyarrow.fs import FileType

        return bool(self._ask(lambda: self.system.get_file_info(self.path).type) != FileType.NotFound)

    def modified(self) -> float | None:
        found: int | None = self._ask(lambda: self.system.get_file_info(self.path).mtime_ns)
        return None if found is None else found / 1e9

    def check_writable(self) -> None:
        probe = self / f"writable-{uuid.uuid4().hex}"
        probe.write(b"")
        probe.remove()

    def names(self, *, also_empty: bool = False) -> list[str]:
        if also_empty and self.system.type_name == "s3":  # others do not list folders; S3 keeps those that are empty by now
            return sorted(filter(_is_ours, (info.base_name for info in self._list(recursive=False))))
        return sorted(filter(_is_ours, {path.partition("/")[0] for path in self.files()}))

    def files(self) -> dict[str, int]:
        return {info.path[len(self.path) + 1 :]: info.size for info in self._list(recursive=True) if info.is_file}

    def _list(self, *, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path, recursive=recursive, allow_not_found=True)
        found: list[Any] = self._ask(lambda: self.system.get_file_info(selector))
        return found

    def remove(self) -> None:
        for path in [f"{self.path}/{name}" for name in self.files()] or [self.path]:
            with contextlib.suppress(FileNotFoundError):
                self._ask(functools.partial(self.system.delete_file, path))

    def move(self, target: Location) -> None:
        assert isinstance(target, BucketLocation)
        for name in self.files():  # a bucket has no folders to rename
            self._ask(functools.partial(self.system.copy_file, f"{self.path}/{name}", f"{target.path}/{name}"))
        self.remove()

    def _ask(self, request: Callable[[], T]) -> T:
        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential(multiplier=0.5, max=8) + tenacity.wait_random(0, 0.2),
            retry=tenacity.retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            return attempts(request)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageUnreachable(f"{self.prefix}{self.path}: {str(error).splitlines()[0]}") from error


def locate(text: str | Path) -> Location:
    """Return the location that a setting or an argument names: a path, or `s3://bucket/prefix` or `gs://bucket/prefix`.

    Options such as `?region=eu-west-1` or `?endpoint_override=host:port&scheme=http` are pyarrow's. Raises ValueError, one
    line, for another scheme, a bucket that is not named, unknown options, credentials in the text, and a `~` or a `$NAME`
    that stand for nothing.
    """
    if isinstance(text, Path) or "://" not in text:
        return DiskLocation(expanded(os.fspath(text)))
    from pyarrow.fs import FileSystem
    from pyarrow.lib import ArrowException

    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{parts.scheme}:// is unknown (known: a path, s3://bucket/prefix, gs://bucket/prefix)")
    if parts.password:
        raise ValueError("credentials belong in the environment or an instance's role, not in the address")
    if not parts.hostname:
        raise ValueError(f"{text!r} names no bucket: expected {parts.scheme}://bucket/prefix")
    try:
        system, path = FileSystem.from_uri(text)
    except (ArrowException, ValueError, OSError) as error:
        raise ValueError(str(error).splitlines()[0]) from error
    user = f"{parts.username}@" if parts.username else ""  # gs://anonymous@bucket
    return BucketLocation(system, path, f"{parts.scheme}://{user}", parts.query)


def _is_ours(name: str) -> bool:
    """Whether a file or folder may be a store's: systems leave hidden ones, writers that died temporary ones."""
    return not name.startswith(".") and not name.endswith(".tmp")


def _may_pass(error: BaseException) -> bool:
    """Whether asking again may help."""
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
        return False
    return not any(word in str(error) for word in USELESS_TO_REPEAT)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that it is either all there or not there: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
