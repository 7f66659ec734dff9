"""Figures of the report that the page shows as they are: maps, bars, and those of analyses of one's own."""

import base64
import io
import threading
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG

from raylth.report.labels import readable
from raylth.report.sections import figures_of
from raylth.serve.data import read_frames, reason_of
from raylth.store import Location

__all__ = ["figures_data"]

INTERACTIVE = ("accuracy_vs_rewind", "accuracy_vs_sparsity", "difference", "learning_curves", "lines")

DRAWING = threading.Lock()  # matplotlib is for one thread at a time


def figures_data(run: Location) -> dict[str, list[dict[str, Any]]]:
    """Return the figures that the browser does not draw, as SVG in base64, and those that there are none of, with reasons."""
    frames, _ = read_frames(run)
    shown: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    if frames is None:
        return {"figures": shown, "missing": missing}
    for entry in figures_of(frames):
        if entry.name in INTERACTIVE:
            continue
        try:
            with DRAWING, entry.guarded("figure"):
                figure, svg = entry.make(frames, entry.title), io.BytesIO()
                FigureCanvasSVG(figure).print_svg(svg)
        except Exception as error:  # a fault of one figure hides no other one
            missing.append({"title": readable(entry.title), "reason": readable(reason_of(error))})
            continue
        width, height = (round(96 * side) for side in figure.get_size_inches())
        picture = base64.b64encode(svg.getvalue()).decode()
        about = {"name": entry.name, "title": entry.title, "text": readable(entry.text)}
        shown.append({**about, "svg": picture, "width": width, "height": height})
    return {"figures": shown, "missing": missing}
