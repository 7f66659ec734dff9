"""The report of one run: `report.html`, one file that needs nothing else, with its figures and tables beside it."""

import base64
import importlib.resources
import io
import json
from dataclasses import dataclass, field
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from raylth.report.contents import FIGURES, TABLES, Frames, notes_of
from raylth.report.findings import findings
from raylth.report.results import load_manifest
from raylth.report.searches import search_findings
from raylth.store import Location

__all__ = ["write_report"]


@dataclass(frozen=True)
class Shown:
    """A figure or a table as the page shows it."""

    name: str  # of its files
    title: str
    text: str  # what a reader must know of it
    html: str
    notes: list[str] = field(default_factory=list)  # what else, a line each


def write_report(run: Location, out: Location) -> Location:
    """Write a run's report to `out`: `report.html`, `figures/*.png` and `.svg`, `tables/*.csv` and `.tex`.

    `run` is its folder in a store, `<store>/runs/<run>`; the sweep may still be going on. Returns the page. Raises
    FileNotFoundError when the run has written nothing yet.
    """
    manifest, frames = load_manifest(run), Frames.load(run)
    name = manifest["config"]["name"]
    figures, tables = _figures(frames, name, out), _tables(frames, out)
    counts = pd.DataFrame(manifest["stages"]).T.fillna(0).astype(int)
    done = int(counts.get("done", pd.Series(dtype=int)).sum())
    total = int(counts.to_numpy().sum())
    page = _template().render(
        name=name,
        manifest=manifest,
        subtitle=", ".join([manifest["config"]["data"]["name"], manifest["config"]["model"]["name"]]),
        done=done,
        total=total,
        counts=counts.to_html(classes="numbers", border=0),
        findings=[
            *search_findings(frames.search, frames.results),
            *findings(frames.results, frames.barriers, frames.ensembles, frames.masks),
        ],
        figures=figures,
        tables=tables,
        failures=manifest.get("failures", []),
        num_failures=manifest.get("num_failures", 0),
        settings=json.dumps(manifest["config"], indent=1),
        networks=len(frames.results),
    )
    (out / "report.html").write(page.encode())
    return out / "report.html"


def _figures(frames: Frames, name: str, out: Location) -> list[Shown]:
    shown = []
    for entry in (entry for entry in FIGURES if entry.has_place(frames)):
        file, title, text = entry.name, entry.title, entry.text
        try:
            figure = entry.make(frames, f"{name}: {title[0].lower()}{title[1:]}")
        except ValueError as error:  # nothing to draw yet, and why
            shown.append(Shown(file, title, f"{text} Not drawn: {error}.", ""))
            continue
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once is enough for both files
        data = {kind: _rendered(figure, kind) for kind in ("png", "svg")}
        for kind, content in data.items():
            (out / "figures" / f"{file}.{kind}").write(content)
        picture = base64.b64encode(data["svg"]).decode()
        html = f'<img src="data:image/svg+xml;base64,{picture}" alt="{title}">'
        shown.append(Shown(file, title, text, html))
    return shown


def _tables(frames: Frames, out: Location) -> list[Shown]:
    shown = []
    for entry in TABLES:
        file, title, notes = entry.name, entry.title, notes_of(entry, frames)
        frame = entry.make(frames) if entry.has_place(frames) else pd.DataFrame()
        if frame.empty:
            for kind in ("csv", "tex"):  # of an earlier report, which said more than can be said now
                (out / "tables" / f"{file}.{kind}").remove()
        if not entry.has_place(frames):
            continue
        if frame.empty:
            shown.append(Shown(file, title, f"{entry.text} {entry.nothing}".strip(), "", notes))
            continue
        rounded = frame.round({name: 6 if str(name).startswith("p") else 3 for name in frame})
        (out / "tables" / f"{file}.csv").write(rounded.to_csv(index=False).encode())
        (out / "tables" / f"{file}.tex").write(_latex(rounded).encode())
        view = entry.shown(frames, rounded)
        view = view.astype(object).where(view.notna(), "")  # pandas writes <NA>, whatever na_rep says
        html = view.to_html(index=False, classes="numbers", border=0, na_rep="", float_format=lambda value: f"{value:g}")
        shown.append(Shown(file, title, entry.text, html, notes))
    return shown


def _latex(frame: pd.DataFrame) -> str:
    """Write a table as LaTeX's tabular (needs booktabs)."""
    named = frame.rename(columns=lambda name: str(name).replace("_", " "))
    return str(named.style.hide(axis="index").format(_plain, escape="latex", na_rep="--").to_latex(hrules=True))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rendered(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def _template() -> jinja2.Template:
    text = (importlib.resources.files("raylth.report") / "report.html.j2").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
