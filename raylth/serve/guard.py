"""Who may read the page: whoever has its token. Every answer is read-only and may load nothing from elsewhere."""

import hashlib
import secrets
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADERS", "Guard", "new_token"]

METHODS = ("GET", "HEAD")
POLICY = {  # Plotly writes style elements; all scripts are files of this server
    "default-src": "'none'", "script-src": "'self'", "style-src": "'self' 'unsafe-inline'", "img-src": "'self' data: blob:",
    "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def new_token() -> str:
    """Return a token of 256 random bits, as a URL has it."""
    return secrets.token_urlsafe(32)


class Guard:
    """Lets requests through that carry the token: in the query of the first one, in a cookie from then on.

    The cookie's name depends on the token, since browsers do not tell apart the ports of one host.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token
        self.cookie = f"raylth-{hashlib.sha256(token.encode()).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        queried = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        is_first = self._is_token(queried)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "private, no-cache")
                if is_first:
                    headers.append("Set-Cookie", f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict")
            await send(message)

        handler: ASGIApp = self.app
        if not is_first and not self._is_token(HTTPConnection(scope).cookies.get(self.cookie, "")):
            handler = _refusal(403, "the address that raylth serve printed has a token, which is missing here or another")
        elif scope["method"] not in METHODS:
            handler = _refusal(405, "this page is read-only")
            handler.headers["Allow"] = ", ".join(METHODS)
        await handler(scope, receive, answer)

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self.token.encode())


def _refusal(status: int, text: str) -> Response:
    return PlainTextResponse(f"{status}: {text}\n", status)
