"""The report of one run: `report.html`, one file that needs nothing else, with its figures and tables beside it."""

import base64
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from raylth.report.display import View, as_view
from raylth.report.entry import Frames, TableEntry
from raylth.report.links import data_files
from raylth.report.measurements import NothingToShow
from raylth.report.results import load_manifest
from raylth.report.sections import figures_of, findings_of, made_table, notes_of, tables_of
from raylth.report.templates import template
from raylth.store import Location

__all__ = ["write_report"]

NOT_DONE = ("failed", "diverged", "blocked")


@dataclass(frozen=True)
class Shown:
    """A figure or a table as the page shows it."""

    name: str  # of its files
    title: str
    text: str  # what a reader must know of it
    picture: str = ""  # of a figure, base64 of its SVG
    size: tuple[int, int] = (0, 0)  # of a figure, in CSS pixels
    view: View | None = None  # of a table
    notes: list[str] = field(default_factory=list)  # what else, a line each


@dataclass
class Contents:
    """What a page shows of one kind, and the titles of what it has nothing of, with the reason."""

    shown: list[Shown] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def write_report(run: Location, out: Location) -> Location:
    """Write a run's report to `out`: `report.html`, `figures/*.png` and `.svg`, `tables/*.csv` and `.tex`.

    `run` is its folder in a store, `<store>/runs/<run>`; the sweep may still be running. Returns the page. Raises
    FileNotFoundError when the run has written nothing yet.
    """
    manifest, frames = load_manifest(run), Frames.load(run)
    name = manifest["config"]["name"]
    counts = pd.DataFrame(manifest["stages"]).T.fillna(0).astype(int)
    done = int(counts.get("done", pd.Series(dtype=int)).sum())
    total = int(counts.to_numpy().sum())
    page = template("report.html.j2").render(
        name=name,
        manifest=manifest,
        subtitle=", ".join([manifest["config"]["data"]["name"], manifest["config"]["model"]["name"]]),
        done=done,
        total=total,
        counts=as_view(counts.rename_axis("stage").reset_index()),
        findings=findings_of(frames),
        figures=_figures(frames, name, out),
        tables=_tables(frames, out),
        not_done=_not_done(manifest),
        failures=manifest.get("failures", []),
        num_failures=manifest.get("num_failures", 0),
        data_files=data_files(run, out),
        settings=json.dumps(manifest["config"], indent=1),
        networks=len(frames.results),
    )
    (out / "report.html").write(page.encode())
    return out / "report.html"


def _not_done(manifest: dict[str, Any]) -> str:
    """Say how many stages failed, diverged and are blocked; "" for none."""
    counts = Counter[str]()
    for states in manifest["stages"].values():
        counts.update(states)
    return ", ".join(f"{int(counts[state]):,} {state}" for state in NOT_DONE if counts[state])


def _figures(frames: Frames, name: str, out: Location) -> Contents:
    contents = Contents()
    for entry in figures_of(frames):
        file, title = entry.name, entry.title
        try:
            with entry.guarded("figure"):
                figure = entry.make(frames, f"{name}: {title[0].lower()}{title[1:]}")
                data, inches = _files(figure), figure.get_size_inches()
        except ValueError as error:  # nothing to draw yet, and why
            contents.missing.append((title, str(error)))
            for kind in ("png", "svg"):  # of an earlier report
                (out / "figures" / f"{file}.{kind}").remove()
            continue
        for kind, content in data.items():
            (out / "figures" / f"{file}.{kind}").write(content)
        width, height = (round(96 * side) for side in inches)
        picture = base64.b64encode(data["svg"]).decode()
        contents.shown.append(Shown(file, title, entry.text, picture, (width, height)))
    return contents


def _tables(frames: Frames, out: Location) -> Contents:
    contents = Contents()
    for entry in tables_of(frames):
        file, title, notes = entry.name, entry.title, notes_of(entry, frames)
        nothing = entry.nothing
        try:
            with entry.guarded("table"):
                made = _made(entry, frames)
        except NothingToShow as error:
            made, nothing = None, str(error)
        if made is None:
            for kind in ("csv", "tex"):  # of an earlier report, which had rows that this one lacks
                (out / "tables" / f"{file}.{kind}").remove()
            if entry.has_place(frames) and not nothing:  # its notes are all that it says
                contents.shown.append(Shown(file, title, entry.text, notes=notes))
            elif entry.has_place(frames):
                contents.missing.append((title, nothing))
            continue
        csv, tex, view = made
        (out / "tables" / f"{file}.csv").write(csv)
        (out / "tables" / f"{file}.tex").write(tex)
        contents.shown.append(Shown(file, title, entry.text, view=view, notes=notes))
    return contents


def _made(entry: TableEntry, frames: Frames) -> tuple[bytes, bytes, View] | None:
    """Return a table as CSV, as LaTeX and as the page shows it; None where there is nothing in it."""
    made = made_table(entry, frames)
    if made is None:
        return None
    rounded, view = made
    return rounded.to_csv(index=False).encode(), _latex(rounded).encode(), view


def _latex(frame: pd.DataFrame) -> str:
    """Write a table as LaTeX's tabular (needs booktabs)."""
    named = frame.rename(columns=lambda name: str(name).replace("_", " "))
    return str(named.style.hide(axis="index").format(_plain, escape="latex", na_rep="--").to_latex(hrules=True))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _files(figure: Figure) -> dict[str, bytes]:
    """Return a figure as PNG and SVG, laid out once and drawn once for each: `savefig` draws it once more for both."""
    png, svg = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(png, pil_kwargs={"compress_level": 3})
    figure.set_layout_engine("none")
    FigureCanvasSVG(figure).print_svg(svg)
    return {"png": png.getvalue(), "svg": svg.getvalue()}
