"""Ray's authentication token, decided before `import ray`: Ray reads its environment once, at import."""

import os
from pathlib import Path

__all__ = ["send_token"]


def send_token() -> bool:
    """Let this process send its token to the cluster that it joins, when the machine holds one; returns whether it will.

    `ray start` asks for the token as soon as the machine has a token file, which the first local `ray.init()` writes,
    but `ray.init(address=...)` sends none unless told to. A `RAY_AUTH_MODE` that the user set stays as it is.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        if os.environ.get("RAY_AUTH_TOKEN") or path.is_file():
            os.environ["RAY_AUTH_MODE"] = "token"
    return os.environ.get("RAY_AUTH_MODE") == "token"
