"""Stage `plane`: three networks -> loss and error over the plane through them (paper, Figure 4b)."""

import copy
import time

import torch

from raylth.core.interpolate import Plane
from raylth.stages.context import Context
from raylth.stages.endpoints import Evaluator, Measured, load_ends
from raylth.stages.kind import PER_POINT, Finished, Rows, StageKind
from raylth.stages.settings import PlaneSettings
from raylth.stages.stage import Artefact, Stage

__all__ = ["KIND", "plane"]


def plane(stage: Stage[PlaneSettings], context: Context) -> dict[str, Artefact]:
    """Measure a grid over the plane through `a`, `b` and `c`, moved as the stage says, and the three themselves.

    The three are measured as the grid is, and without correction beside.

    Loss in nats, error in percent, on the training samples and on the test split; x and y are distances of weights in the
    plane's orthonormal coordinates, `a` at the origin, `b` on the axis of x.
    """
    start = time.perf_counter()
    settings = stage.settings
    networks = load_ends(stage, context)
    evaluator = Evaluator(context, settings.samples)
    measure = evaluator.reset() if settings.correction == "reset" else lambda network, alpha: evaluator.plain(network)
    names = [name for name, _ in networks[0].named_parameters()]
    a, b, c = (network.state_dict() for network in networks)
    found = Plane(a, b, c, coordinates_of=names)
    points = []
    between = copy.deepcopy(networks[0])
    for role, (x, y), network in zip("abc", found.corners, networks, strict=True):
        between.load_state_dict(network.state_dict())
        plain = evaluator.plain(between)
        for row in _rows(x, y, measure(between, 0.0), role):
            own = plain[str(row["split"])]
            points.append({**row, "plain_loss": own.loss, "plain_error": own.error})
    for y in found.ticks(1, settings.resolution, settings.margin):
        for x in found.ticks(0, settings.resolution, settings.margin):
            with torch.no_grad():
                between.load_state_dict(found.at(x, y))
            points += _rows(x, y, measure(between, 0.0), None)
    metrics = {"points": points, "seconds": time.perf_counter() - start, "epochs": 0}
    return {stage.key: Artefact({}, metrics)}


def _rows(x: float, y: float, measured: Measured, corner: str | None) -> list[dict[str, object]]:
    return [
        {"corner": corner, "split": split, "x": x, "y": y, "loss": found.loss, "error": found.error}
        for split, found in measured.items()
    ]


def _measured(finished: Finished[PlaneSettings]) -> Rows:
    """Return a row for each point; corners have the names of their networks instead of their roles."""
    stage = finished.stage
    own = {"between": stage.labels["between"], "correction": stage.settings.correction}
    corners = dict(zip("abc", stage.labels["between"].split(", "), strict=True))
    points = finished.metrics.get("points", [])
    return {"planes": [{**own, **found, "corner": corners.get(found["corner"], found["corner"])} for found in points]}


KIND = StageKind(
    name="plane",
    settings=PlaneSettings,
    rank=70,
    compute=plane,
    rows=_measured,
    num_bytes=lambda stage, network: PER_POINT * 2 * stage.settings.resolution**2,
)
