"""The command line of the live page: `python -m raylth.serve STORE [--host HOST] [--port PORT]`."""

import argparse
import contextlib
import ipaddress
import socket
import sys
from collections.abc import Sequence
from urllib.parse import quote

from raylth.common import signals
from raylth.common.exit_codes import ExitCode, describe
from raylth.common.importing import uncollected
from raylth.store import DiskLocation, Location, locate
from raylth.store.run_files import is_run

__all__ = ["main", "make_parser"]

FOLDERS = ("runs", "artefacts", "states", "searches", "results")  # a sweep makes one of these before all else
PACKAGES = ("starlette", "uvicorn", "plotly")
LAST_PORT = 65535
OPEN = (
    "--host {host}: other machines reach this address. Whoever has the token reads the store, and the connection is not "
    "encrypted: on a network that others use, leave --host out and forward the port by ssh -L"
)
DESCRIPTION = """\
Show the sweeps of a store in a browser while they run: progress, failures, figures and tables. Read-only; the address that
is printed has a token, without which nothing is shown. Ctrl-C ends it. Needs pip install 'raylth[serve]'.

examples:
  python -m raylth.serve raylth-store
  python -m raylth.serve s3://my-bucket/store --port 8765     # then: ssh -L 8765:127.0.0.1:8765 this-machine
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m raylth.serve",
        description=DESCRIPTION,
        epilog=describe({ExitCode.OK: "ended by Ctrl-C", ExitCode.BAD_INPUT: "no such store, or an address that is taken"}),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = "the store's folder or bucket (`storage` in the sweep file), or one run of it: <store>/runs/<run>"
    parser.add_argument("store", metavar="STORE", help=text)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: this machine alone, %(default)s)"
    )
    parser.add_argument("--port", type=_port, default=0, help="the port to listen on (default: one that is free)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until Ctrl-C and return its exit status: 0, or 2 when there is nothing to serve or no such address."""
    options = make_parser().parse_args(arguments)
    try:
        store, page = _store_and_page(options.store)
    except (OSError, ValueError) as error:
        print(f"{options.store}: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    try:
        with uncollected():
            import uvicorn

            from raylth.serve.app import make_app, plotly_name
            from raylth.serve.guard import new_token

            plotly_name()
    except ImportError as error:
        if str(error.name).partition(".")[0] not in PACKAGES:
            raise
        print(f"the package {error.name} is not installed: pip install 'raylth[serve]'", file=sys.stderr)
        return ExitCode.BAD_INPUT
    try:
        listening = socket.create_server((options.host, options.port), family=_family(options.host))
    except OSError as error:
        print(
            f"--host {options.host}, --port {options.port}: {str(error.strerror or error).partition(' (while')[0]}",
            file=sys.stderr,
        )
        return ExitCode.BAD_INPUT
    token = new_token()
    signals.raise_in_order()
    with listening, contextlib.suppress(KeyboardInterrupt):
        if not _is_loopback(options.host):
            print(OPEN.format(host=options.host), file=sys.stderr, flush=True)
        print(f"http://{_named(options.host)}:{listening.getsockname()[1]}/{page}?token={token}", flush=True)
        settings = uvicorn.Config(
            make_app(store, token), log_level="warning", access_log=False, lifespan="off", ws="none",
            server_header=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        uvicorn.Server(settings).run(sockets=[listening])
    return ExitCode.OK


def _store_and_page(text: str) -> tuple[Location, str]:
    """Return the store that is named, or that the run is in which is named, and the page's address to begin with.

    Raises ValueError where there is neither; a folder in which nothing is yet may become a store.
    """
    place = locate(text.rstrip("/") or "/").absolute()
    if place.parent.name == "runs" and is_run(place):
        return place.parent.parent, f"runs/{quote(place.name)}"
    is_empty = isinstance(place, DiskLocation) and place.path.is_dir() and not place.names()
    if is_empty or any((place / name).exists() for name in FOLDERS) or (place / "runs").names(also_empty=True):
        return place, ""
    if place.name == "runs" and any(is_run(place / name) for name in place.names(also_empty=True)):
        raise ValueError(f"the runs of a store: name the store itself, {place.parent}")
    raise ValueError("no store here; expected a folder or a bucket that a sweep writes to (`storage` in its file)")


def _port(text: str) -> int:
    """Return a port's number; argparse names the option where it is none."""
    if not text.isdecimal() or int(text) > LAST_PORT:
        raise argparse.ArgumentTypeError(f"should be a number from 0 to {LAST_PORT}, found {text!r}")
    return int(text)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _named(host: str) -> str:
    """Return a host as an address has it: this machine's name where it listens on all of its addresses."""
    if host in ("", "0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
