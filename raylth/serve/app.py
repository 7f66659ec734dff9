"""The page as a web application: its routes, and how each is answered."""

import importlib.metadata
import importlib.resources
import re
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from raylth import __version__
from raylth.report.templates import template
from raylth.serve.answers import RECENT, Kept, Recent, answer, as_json, tag_of, version_of
from raylth.serve.data import curves_data, run_data
from raylth.serve.figures import figures_data
from raylth.serve.guard import Guard
from raylth.serve.progress import progress_of, sweeps_of
from raylth.store import Location

__all__ = ["make_app", "plotly_name"]

STATIC = {"page.css": "text/css", "page.js": "text/javascript", "figures.js": "text/javascript"}
FOREVER = "private, max-age=31536000, immutable"  # a file whose address has its version


class Pages:
    """The answers for one store, of which nothing is older than `recent` seconds."""

    def __init__(self, store: Location, recent: float) -> None:
        self.store, self.kept, self.recent = store, Kept(), Recent(recent)

    def sweeps_page(self, request: Request) -> Response:
        """Return the page with all sweeps; it asks for their progress by itself."""
        return _page(request, "sweeps.html.j2", store=_shown(self.store), up="")

    def run_page(self, request: Request) -> Response:
        """Return the page of one run; it asks for everything else by itself."""
        run = self._run(request)
        return _page(request, "run.html.j2", store=_shown(self.store), run=run.name, up="../", plotly=plotly_name())

    def sweeps(self, request: Request) -> Response:
        """Return the progress of all runs."""
        content = self.recent.read("sweeps", lambda: as_json(sweeps_of(self.store)))
        return answer(request, tag_of(content), lambda: content)

    def progress(self, request: Request) -> Response:
        """Return the progress of one run."""
        content = as_json(self._progress(self._run(request)))
        return answer(request, tag_of(content), lambda: content)

    def data(self, request: Request) -> Response:
        """Return figures' points and tables of one run."""
        return self._made(request, "data", lambda run: as_json(run_data(run)))

    def figures(self, request: Request) -> Response:
        """Return the figures of one run that the browser does not draw."""
        return self._made(request, "figures", lambda run: as_json(figures_data(run)))

    def curves(self, request: Request) -> Response:
        """Return the learning curves of one cell of a run."""
        cell = request.path_params["cell"]

        def make(run: Location) -> dict[str, bytes]:
            return {name: as_json(columns) for name, columns in curves_data(run).items()}

        def one(cells: dict[str, bytes]) -> bytes:
            if cell not in cells:
                raise HTTPException(404, f"no learning curves of the cell {cell!r}")
            return cells[cell]

        return self._made(request, "curves", make, one)

    def _made(
        self, request: Request, name: str, make: Callable[[Location], Any], then: Callable[[Any], bytes] = lambda made: made
    ) -> Response:
        run = self._run(request)
        version = self.recent.read(f"version/{run.name}", lambda: version_of(run))
        return answer(request, version, lambda: then(self.kept.get(f"{name}/{run.name}", version, lambda: make(run))))

    def _run(self, request: Request) -> Location:
        """Return the folder of the run that an address names; 404 where there is none."""
        name = request.path_params["run"]
        run = self.store / "runs" / name
        if not re.fullmatch(r"[^./\\\0][^/\\\0]*", name) or self._progress(run) is None:
            raise HTTPException(404, f"no run {name!r} in this store")
        return run

    def _progress(self, run: Location) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.recent.read(f"progress/{run.name}", lambda: progress_of(run))
        return found


def make_app(store: Location, token: str, *, recent: float = RECENT) -> Guard:
    """Return the application that serves a store, read-only, to readers who have the token.

    All readers together have the store read once in `recent` seconds.
    """
    pages = Pages(store, recent)
    routes = [
        Route("/", pages.sweeps_page),
        Route("/sweeps.json", pages.sweeps),
        Route("/runs/{run}", pages.run_page),
        Route("/runs/{run}/progress.json", pages.progress),
        Route("/runs/{run}/data.json", pages.data),
        Route("/runs/{run}/figures.json", pages.figures),
        Route("/runs/{run}/curves/{cell}.json", pages.curves),
        Route("/static/{file}", _static),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refused, OSError: _unreachable}
    compressed = Middleware(GZipMiddleware, minimum_size=2000, compresslevel=5)
    return Guard(Starlette(routes=routes, middleware=[compressed], exception_handlers=handlers), token)


def plotly_name() -> str:
    """Return the name of Plotly's script, with its version; ModuleNotFoundError where the package is missing."""
    try:
        return f"plotly-{importlib.metadata.version('plotly')}.min.js"
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError("plotly is missing", name="plotly") from error


def _page(request: Request, name: str, **values: Any) -> Response:
    content = template(name, "raylth.serve").render(version=__version__, **values).encode()
    return answer(request, tag_of(content), lambda: content, media="text/html")


def _static(request: Request) -> Response:
    """Return a file of the page: the package's own, or Plotly's script as its package has it."""
    file = request.path_params["file"]
    if file == plotly_name():
        content = (importlib.resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
        return Response(content, media_type="text/javascript", headers={"Cache-Control": FOREVER})
    if file not in STATIC:
        raise HTTPException(404, f"no file {file!r}")
    content = (importlib.resources.files("raylth.serve") / "static" / file).read_bytes()
    return answer(request, tag_of(content), lambda: content, media=STATIC[file])


def _shown(store: Location) -> str:
    """Return a store's address for people, without the options of a bucket."""
    return str(store).partition("?")[0] if "://" in str(store) else str(store)


def _refused(request: Request, error: HTTPException) -> Response:
    return PlainTextResponse(f"{error.status_code}: {error.detail}\n", error.status_code, headers=error.headers)


def _unreachable(request: Request, error: OSError) -> Response:
    return PlainTextResponse(f"503: the store does not answer: {error}\n", 503)
