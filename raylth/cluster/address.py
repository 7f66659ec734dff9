"""Which Ray a sweep uses, its token and its folder: decided before `import ray`, which reads its environment only once."""

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from raylth.cluster import ray_private

__all__ = ["LOCAL", "ClusterError", "Joining", "choose_cluster"]

LOCAL = "local"  # ray.init's word for a cluster of its own on this machine
AUTO = "auto"  # that of this machine, whoever started it
PORT_SECONDS, RAY_SECONDS = 3.0, 20.0  # for a port to answer, and for what is behind it to answer as Ray does
MODES = ("disabled", "token", "k8s")
ANSWERS, SILENT, REFUSES = "answers", "silent", "refuses"  # how Ray takes a question
REFUSED = "the Ray cluster at {address} rejects this token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)"
LISTENS = "0A"  # the state of a socket in /proc/net/tcp
SOCKET_BYTES = 107  # that the name of a Unix socket may have


class ClusterError(RuntimeError):
    """A cluster that cannot run the sweep as asked; one line that says what is missing."""


@dataclass(frozen=True)
class Joining:
    """How a sweep joins its cluster: the address ("local": Ray is started here), the options typed with it, and a remark."""

    address: str | None = LOCAL
    without_token: bool = False  # join a cluster of several machines without token authentication
    verbose: bool = False  # show Ray's own messages
    note: str = ""  # why this one

    @property
    def is_local(self) -> bool:
        """Whether Ray is started on this machine, for this sweep alone."""
        return self.address in (None, LOCAL)

    @property
    def words(self) -> list[str]:
        """The options that were typed, to be typed again."""
        return ["--without-token"] if self.without_token else []

    def __str__(self) -> str:
        where = "starting Ray on this machine" if self.is_local else f"joining Ray at {self.address}"
        return f"{where} ({self.note})" if self.note else where


def choose_cluster(asked: str | None) -> tuple[str, str]:
    """Return an address for `ray.init` and a remark on it.

    It is the asked one, else RAY_ADDRESS, else this user's Ray on this machine, else "local". "auto" is this machine's Ray,
    whoever started it. One that does not answer within seconds is an error where it was asked for, and passed over where it
    was only found: Ray would wait minutes for it. Where the machine holds a token, a cluster that is joined is sent it
    (`RAY_AUTH_MODE`, unless the user set that). Raises ClusterError.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() not in MODES:
        raise ClusterError(f"RAY_AUTH_MODE: {mode!r} is unknown (known: {', '.join(MODES)})")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under `uv run` Ray would upload the working folder
    address, note = asked or os.environ.get("RAY_ADDRESS", "").strip(), ""
    if address in ("", AUTO):
        is_asked, (address, note) = address == AUTO, _found(anybodys=address == AUTO)
        if is_asked and address == LOCAL:
            raise ClusterError(f"Ray is not running on this machine: {note or 'ray start has recorded no address'}")
    elif address != LOCAL and (answer := _answer(address)) != ANSWERS:
        raise ClusterError(REFUSED.format(address=address) if answer == REFUSES else f"no Ray cluster answers at {address}")
    if address == LOCAL:
        note = "; ".join(filter(None, (note, _fit_sockets())))
        if not _has_token() and not _can_keep_token():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # for this sweep alone; Ray would write one at home
    elif mode is None and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # `ray start` asks for it as soon as a token file is there
    return address, note


def _found(*, anybodys: bool) -> tuple[str, str]:
    """Return the address of the cluster that `ray start` made on this machine, or "local"; and what to say of it."""
    file = ray_private.current_cluster_file(_temporary_folder()[1])
    try:
        address, owner = file.read_text().strip(), file.stat().st_uid
    except (OSError, ValueError):
        return LOCAL, ""
    listener = _listener(address)
    if not anybodys and (owner if listener is None else listener) != os.getuid():
        return LOCAL, f"that at {address} is another user's; --address auto joins it"
    answer = _answer(address)
    if answer == REFUSES:  # a second Ray beside one's own would be a surprise
        raise ClusterError(f"{REFUSED.format(address=address)}; --address local starts another")
    if answer != ANSWERS:
        return LOCAL, f"that at {address}, which {file} names, does not answer"
    return address, "it runs on this machine; --address local starts another"


def _answer(address: str) -> str:
    """Ask whether Ray's control service is at an address; one that Ray itself resolves (ray://) is taken for good."""
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address:
        return ANSWERS
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PORT_SECONDS):
            pass
    except (OSError, ValueError, OverflowError):
        return SILENT
    ask = ray_private.health_check_command(address)
    environment = {**os.environ, **({"RAY_AUTH_MODE": "token"} if _has_token() and "RAY_AUTH_MODE" not in os.environ else {})}
    try:
        done = subprocess.run(ask, env=environment, capture_output=True, text=True, timeout=RAY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return SILENT
    if done.returncode == 0:
        return ANSWERS
    return REFUSES if re.search("authenticat|token", done.stderr + done.stdout, re.IGNORECASE) else SILENT


def _listener(address: str) -> int | None:
    """Return the user who listens at a port of this machine, None where that is not known: the head may be elsewhere.

    The file that names a cluster may be older than the cluster, and another user's.
    """
    port = address.rpartition(":")[2]
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENS and int(fields[1].rpartition(":")[2], 16) == int(port):
                    return int(fields[7])
    return None


def _temporary_folder() -> tuple[str, str]:
    """Return the variable that says where Ray keeps its folders, and the folder."""
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    return next(((name, found) for name in names if (found := os.environ.get(name))), ("", "/tmp"))


def _fit_sockets() -> str:
    """Have a Ray that is started here keep its sockets where their names fit; returns what to say of it.

    Raises ClusterError where there is no such folder, or RAY_TMPDIR, which is Ray's alone, is not one.
    """
    name, folder = _temporary_folder()
    if not os.path.isabs(folder):  # Ray's processes have other working folders
        folder = os.environ["RAY_TMPDIR"] = os.path.abspath(folder)
    length, most = len(os.fsencode(folder)), SOCKET_BYTES - ray_private.SOCKET_PATH_BYTES
    if length <= most:
        return ""
    if name == "RAY_TMPDIR" or not os.access("/tmp", os.W_OK):
        raise ClusterError(
            f"{name}: {folder} has {length} characters, and the paths of Ray's sockets leave {most}: "
            f"set RAY_TMPDIR to a shorter folder"
        )
    os.environ["RAY_TMPDIR"] = "/tmp"
    return f"in /tmp: {name} has {length} characters, and the paths of Ray's sockets leave {most}"


def _can_keep_token() -> bool:
    """Tell whether Ray can write the token that it makes for a cluster of its own."""
    try:
        home = Path.home()
    except RuntimeError:
        return False
    folder = home / ".ray"
    return os.access(folder if folder.exists() else home, os.W_OK)


def _has_token() -> bool:
    try:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        return bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
    except (OSError, RuntimeError):  # no home folder, or one that may not be read
        return bool(os.environ.get("RAY_AUTH_TOKEN"))
