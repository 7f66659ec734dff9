"""Which cluster a sweep joins, and its token: decided before `import ray`, which reads its environment only once."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LOCAL", "ClusterError", "Joining", "choose_cluster"]

LOCAL = "local"  # ray.init's word for a cluster of its own on this machine
PATIENCE = 3.0  # seconds for a cluster that this machine remembers to answer


class ClusterError(RuntimeError):
    """A cluster that cannot run the sweep as asked; one line that says what is missing."""


@dataclass(frozen=True)
class Joining:
    """How a sweep joins its cluster: the address (None: the one that Ray finds by itself) and what is typed with it."""

    address: str | None = None
    without_token: bool = False  # join several machines that ask nobody for a token
    verbose: bool = False  # show Ray's own messages

    @property
    def is_local(self) -> bool:
        """Whether Ray is started on this machine, for this sweep alone."""
        return self.address in (None, LOCAL)

    @property
    def words(self) -> list[str]:
        """The options that were typed, to be typed again."""
        return ["--without-token"] if self.without_token else []


def choose_cluster(asked: str | None) -> str:
    """Return the address for `ray.init`: the asked one, else RAY_ADDRESS, else a live cluster of this machine, else "local".

    Ray remembers a machine's last cluster in a file and would wait minutes for one that is gone; here it must answer.
    Where the machine holds a token, a cluster that is joined is sent it (`RAY_AUTH_MODE`, unless the user set that).
    """
    address = asked or os.environ.get("RAY_ADDRESS") or _remembered() or LOCAL
    if address != LOCAL and "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # `ray start` asks for it as soon as a token file is there
    return address


def _remembered() -> str | None:
    """Return the address of the cluster that `ray start` made on this machine, if it still answers."""
    file = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    try:
        host, port = file.read_text().strip().rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=PATIENCE):
            return f"{host}:{port}"
    except (OSError, ValueError):
        return None


def _has_token() -> bool:
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()
