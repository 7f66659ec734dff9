"""Stage `connect`: two networks -> loss and error on the line between them, plain, BN reset or REPAIR.

The line runs between any two: from pi(A) to B, from dense A to a round of IMP (paper, Figure 4a), from arm to arm.
"""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from raylth.core.interpolate import barrier, line, middle_rise
from raylth.stages.context import Context
from raylth.stages.endpoints import Evaluator, Measured, load_ends
from raylth.stages.kind import PER_POINT, Finished, Rows, StageKind
from raylth.stages.settings import ConnectSettings
from raylth.stages.stage import Artefact, Stage

__all__ = ["KIND", "connect"]

SCALED = 80  # bytes of a point's temperature and loss at it in the manifest, for one split


def connect(stage: Stage[ConnectSettings], context: Context) -> dict[str, Artefact]:
    """Walk the line from `a` to `b`, moved as the stage says; measure loss (nats) and error (percent).

    Corrections use training samples without augmentation, and correct the ends as they do the points between: a line from A
    to A is flat under each. Barriers: paper, equation 3, for each correction on the training samples and on the test split,
    with the signed rise half-way and the ends without correction beside them; none where a loss on the line is infinite.
    Where the settings ask for a temperature, the same of the losses at each point's own.
    """
    start = time.perf_counter()
    settings = stage.settings
    a, b = load_ends(stage, context)
    evaluator = Evaluator(context, settings.samples, temperature=settings.temperature)
    corrected = {
        "plain": lambda: lambda network, alpha: evaluator.plain(network),
        "reset": evaluator.reset,
        "repair": lambda: evaluator.repair(a, b),
    }
    alphas = [number / (settings.points - 1) for number in range(settings.points)]
    columns = ["loss", "error", *(("temperature", "scaled_loss") if settings.temperature else ())]
    measures = [column for column in columns if column != "temperature"]
    plain_ends = evaluator.plain(a), evaluator.plain(b)
    found, barriers = [], []
    for name in settings.corrections:
        walked = _walk(a, b, alphas, corrected[name]())
        for split in ("train", "test"):
            points = [measured[split]._asdict() for measured in walked]
            own: dict[str, Any] = {"correction": name, "split": split}
            found += [
                {**own, "alpha": alpha, **{column: point[column] for column in columns}}
                for alpha, point in zip(alphas, points, strict=True)
            ]
            for measure in measures:
                values = [point[measure] for point in points]
                if all(map(math.isfinite, values)):
                    own |= {f"{measure}_barrier": barrier(values, alphas), f"{measure}_mid": middle_rise(values, alphas)}
            for end, plain in zip("ab", plain_ends, strict=True):
                own |= {f"plain_loss_{end}": plain[split].loss, f"plain_error_{end}": plain[split].error}
            barriers.append(own)
    metrics = {"line": found, "barriers": barriers, "seconds": time.perf_counter() - start, "epochs": 0}
    return {stage.key: Artefact({}, metrics)}


def _walk(
    a: nn.Module,
    b: nn.Module,
    alphas: list[float],
    measure: Callable[[nn.Module, float], Measured],
) -> list[Measured]:
    """Measure the network at every alpha."""
    between = copy.deepcopy(b)

    def at(alpha: float, state: dict[str, Tensor]) -> Measured:
        between.load_state_dict(state)
        return measure(between, alpha)

    return line(a.state_dict(), b.state_dict(), alphas, at)


def _rows(finished: Finished) -> Rows:
    labels, metrics = finished.stage.labels, finished.metrics
    own = {"between": labels["between"], "carries_masks": labels.get("carries_masks")}
    return {
        "barriers": [{**own, **found} for found in metrics.get("barriers", [])],
        "lines": [{**own, **found} for found in metrics.get("line", [])],
    }


def _point_bytes(settings: ConnectSettings) -> int:
    """Return the bytes of one point on both splits under all corrections."""
    return (PER_POINT + (SCALED if settings.temperature else 0)) * 2 * len(settings.corrections)


KIND = StageKind(
    name="connect",
    settings=ConnectSettings,
    rank=60,
    compute=connect,
    rows=_rows,
    num_bytes=lambda stage, network: _point_bytes(stage.settings) * stage.settings.points,
)
