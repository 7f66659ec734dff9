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


def connect(stage: Stage[ConnectSettings], context: Context) -> dict[str, Artefact]:
    """Walk the line from `a` to `b`, moved as the stage says; measure loss (nats) and error (percent).

    Corrections use training samples without augmentation, and correct the ends as they do the points between: a line from A
    to A is flat under each. Barriers: paper, equation 3, for each correction on the training samples and on the test split,
    with the signed rise half-way and the ends without correction beside them; none where a loss on the line is infinite.
    """
    start = time.perf_counter()
    settings = stage.settings
    a, b = load_ends(stage, context)
    evaluator = Evaluator(context, settings.samples)
    corrected = {
        "plain": lambda: lambda network, alpha: evaluator.plain(network),
        "reset": evaluator.reset,
        "repair": lambda: evaluator.repair(a, b),
    }
    points = settings.points
    alphas = [number / (points - 1) for number in range(points)]
    plain_ends = evaluator.plain(a), evaluator.plain(b)
    found, barriers = [], []
    for name in settings.corrections:
        walked = _walk(a, b, alphas, corrected[name]())
        for split in ("train", "test"):
            losses, errors = ([measured[split][place] for measured in walked] for place in (0, 1))
            found += [
                {"correction": name, "split": split, "alpha": alpha, "loss": loss, "error": error}
                for alpha, loss, error in zip(alphas, losses, errors, strict=True)
            ]
            row: dict[str, Any] = {"correction": name, "split": split}
            for place, (measure, values) in enumerate((("loss", losses), ("error", errors))):
                if all(map(math.isfinite, values)):
                    row |= {f"{measure}_barrier": barrier(values, alphas), f"{measure}_mid": middle_rise(values, alphas)}
                row |= {f"plain_{measure}_{end}": plain[split][place] for end, plain in zip("ab", plain_ends, strict=True)}
            barriers.append(row)
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


KIND = StageKind(
    name="connect",
    settings=ConnectSettings,
    rank=60,
    compute=connect,
    rows=_rows,
    num_bytes=lambda stage, network: PER_POINT * 2 * stage.settings.points * len(stage.settings.corrections),
)
