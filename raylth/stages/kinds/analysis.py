"""Stage `analysis`: networks of one cell -> what an analysis of one's own measures on them."""

import time
from collections.abc import Mapping
from typing import Any

from raylth.analyses import ANALYSES, MeasureInputs
from raylth.core.models import check_code
from raylth.core.modes import in_mode
from raylth.stages.context import Context
from raylth.stages.endpoints import load_ends, load_members
from raylth.stages.kind import Finished, Rows, StageKind
from raylth.stages.settings import AnalysisSettings
from raylth.stages.stage import Artefact, Stage, finite
from raylth.store.tables import DATASETS

__all__ = ["KIND", "analysis"]

# Columns of networks and matches, of which a row of measurements has none: a quantity may have their names.
EMPTY = {
    "network", "arm", "imp_round", "landing", "match_epoch", "match_method", "match_samples", "schedule", "member",
}  # fmt: skip
TAKEN = {*DATASETS["measurements"].names} - EMPTY


def analysis(stage: Stage[AnalysisSettings], context: Context) -> dict[str, Artefact]:
    """Load the networks, measure them, and check what was measured: rows of numbers, texts, bools and None."""
    start = time.perf_counter()
    name = stage.settings.analysis
    plugin = ANALYSES[name]
    check_code("analysis", name, plugin.measure, stage.settings.code)
    settings = plugin.settings.model_validate(stage.settings.settings)  # type: ignore[attr-defined]
    networks: dict[str, Any]
    if plugin.across_replicates:
        networks, permutations = load_members(stage, context, settings.networks)
    else:
        networks, permutations = dict(zip(settings.networks, load_ends(stage, context), strict=True)), {}
    inputs = MeasureInputs(context.train, context.test, context.device, stage.settings.seed, permutations)
    loaded = [each for found in networks.values() for each in (found if isinstance(found, list) else [found])]
    with in_mode(*loaded, training=False):
        rows = [_plain(name, row) for row in plugin.measure(networks, settings, inputs)]
    return {stage.key: Artefact({}, {"rows": rows, "seconds": time.perf_counter() - start, "epochs": 0})}


def _plain(name: str, row: object) -> dict[str, Any]:
    """Return a row as plain Python; TypeError, one line, for what cannot be stored. Infinite numbers become None."""
    if not isinstance(row, Mapping):
        raise TypeError(f"analysis {name}: expected rows that map names to values, found a {type(row).__name__}")
    plain = {}
    for quantity, value in row.items():
        value = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value  # of numpy or torch
        if not isinstance(quantity, str) or not isinstance(value, int | float | str | None):
            raise TypeError(f"analysis {name}: {quantity!r}: expected a number, a text, a bool or None, found {value!r:.60}")
        if quantity in TAKEN:
            raise ValueError(f"analysis {name}: {quantity!r} is a column of the table of measurements: rename the quantity")
        plain[quantity] = finite(value)
    return plain


def _rows(finished: Finished[AnalysisSettings]) -> Rows:
    """Return a row for each quantity of each row that was measured."""
    settings = finished.stage.settings
    own = {"analysis": settings.analysis, "networks": ", ".join(settings.settings["networks"])}
    return {
        "measurements": [
            {
                **own,
                "row": number,
                "quantity": quantity,
                "value": None if isinstance(value, str | None) else float(value),
                "text": value if isinstance(value, str) else None,
            }
            for number, row in enumerate(finished.metrics.get("rows", []))
            for quantity, value in row.items()
        ]
    }


KIND = StageKind(name="analysis", settings=AnalysisSettings, rank=95, compute=analysis, rows=_rows)
