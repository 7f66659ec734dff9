"""A store with runs of every kind, and a real server for a store."""

import http.client
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from raylth.store import locate
from tests.serve import stores

uvicorn = pytest.importorskip("uvicorn")


class Served:
    """A server of one store on loopback."""

    def __init__(self, store, recent):
        from raylth.serve.app import make_app
        from raylth.serve.guard import new_token

        self.token = new_token()
        self.app = make_app(store, self.token, recent=recent)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        settings = uvicorn.Config(self.app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(settings)
        self.thread = threading.Thread(target=lambda: self.server.run(sockets=[self.listening]))

    def get(self, path, *, method="GET", with_cookie=True, **headers):
        """Return status, headers and body of an answer; with the token's cookie unless asked not to."""
        cookie = {"Cookie": f"{self.app.cookie}={self.token}"} if with_cookie else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, headers={**cookie, **{k.replace("_", "-"): v for k, v in headers.items()}})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


@contextmanager
def serving(store, recent=0.0):
    """Serve a store; tests that write to it want to see it at once."""
    served = Served(store, recent)
    served.thread.start()
    try:
        deadline = time.monotonic() + 60
        while not served.server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield served
    finally:
        served.server.should_exit = True
        served.thread.join(30)
        assert not served.thread.is_alive()
        served.listening.close()


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Runs of every kind: `tests.serve.stores`."""
    place = locate(tmp_path_factory.mktemp("served"))
    stores.fill(place)
    return place


@pytest.fixture(scope="module")  # and no longer: where another test moves the clock, the server's loop would wait for it
def served(store):
    with serving(store) as found:
        yield found
