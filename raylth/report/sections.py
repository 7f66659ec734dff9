"""The sections of a report: figures and tables of the package, and of analyses of one's own."""

import re

import pandas as pd
from matplotlib.figure import Figure

from raylth.report.contents import FIGURES, TABLES
from raylth.report.display import View, as_view
from raylth.report.entry import Entry, FigureEntry, Frames, TableEntry
from raylth.report.labels import short_names
from raylth.report.lost import lost_note
from raylth.report.measurements import analyses_in, measurement_figure, measurement_table, summary_of
from raylth.report.searches import search_findings
from raylth.report.sentences import findings, symmetry_findings

__all__ = ["figures_of", "findings_of", "made_table", "notes_of", "tables_of"]


def findings_of(frames: Frames) -> list[str]:
    """Return what a run shows, as sentences; details of one are on its further lines."""
    return [
        *search_findings(frames.search, frames.results),
        *symmetry_findings(frames.manifest, frames.permutations),
        *findings(frames.results, frames.barriers, frames.ensembles, frames.masks),
    ]


def figures_of(frames: Frames) -> list[FigureEntry]:
    """Return the figures that a page of these has a place for, those of analyses of one's own last."""
    own = [_figure_of(*names) for names in short_names(analyses_in(frames.measurements)).items()]
    return [entry for entry in (*FIGURES, *own) if entry.has_place(frames)]


def tables_of(frames: Frames) -> list[TableEntry]:
    """Return all tables, those of analyses of one's own last."""
    return [*TABLES, *(_table_of(*names) for names in short_names(analyses_in(frames.measurements)).items())]


def _figure_of(name: str, title: str) -> FigureEntry:
    def make(frames: Frames, title: str) -> Figure:
        return measurement_figure(frames.measurements, name, title)

    return Entry(_file_of(name), title, summary_of(name), make, analysis=name)


def _table_of(name: str, title: str) -> TableEntry:
    return Entry(
        _file_of(name),
        title,
        summary_of(name),
        lambda frames: measurement_table(frames.measurements, name),
        analysis=name,
    )


def _file_of(name: str) -> str:
    """Return the name of the files of an analysis of one's own."""
    return "analysis_" + re.sub(r"\W+", "_", name)


def notes_of(entry: TableEntry, frames: Frames) -> list[str]:
    """Return what else must be known of a table: its notes, and the networks that it lacks."""
    lost = lost_note(frames.results, entry.lacks) if entry.lacks else ""
    return [*entry.notes(frames), *([f"{lost[0].upper()}{lost[1:]}"] if lost else [])]


def made_table(entry: TableEntry, frames: Frames) -> tuple[pd.DataFrame, View] | None:
    """Return a table with the decimals that its files have, and as a page shows it; None where there is nothing in it."""
    frame = entry.make(frames) if entry.has_place(frames) else pd.DataFrame()
    if frame.empty:
        return None
    rounded = frame.round({name: 6 if str(name).startswith("p") else 3 for name in frame})
    return rounded, as_view(entry.shown(frames, rounded), entry.name)
