"""One figure or table of a report, and the data that all of them are made from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from raylth.report.measurements import NothingToShow
from raylth.report.recipe import Recipe, recipe_of
from raylth.report.results import (
    load_barriers,
    load_curves,
    load_ensembles,
    load_lines,
    load_manifest,
    load_masks,
    load_measurements,
    load_permutations,
    load_planes,
    load_results,
)
from raylth.report.searches import load_search
from raylth.store import Location
from raylth.store.tables import DATASETS

__all__ = ["Entry", "FigureEntry", "Frames", "TableEntry"]

Make = TypeVar("Make")


@dataclass(frozen=True)
class Frames:
    """All that a run has written, as data frames; what it has nothing of is empty."""

    results: pd.DataFrame
    barriers: pd.DataFrame
    lines: pd.DataFrame
    planes: pd.DataFrame
    permutations: pd.DataFrame
    masks: pd.DataFrame
    ensembles: pd.DataFrame
    search: pd.DataFrame
    measurements: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=DATASETS["measurements"].names))
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    manifest: dict[str, Any] | None = field(default=None)

    @property
    def recipe(self) -> Recipe:
        """What the run differs in from the paper's recipe."""
        return recipe_of(self.manifest, searched=not self.search.empty)

    @classmethod
    def load(cls, run: Location) -> "Frames":
        """Load a run's datasets; a run of an older version may lack some, but not its results."""
        loaders = {
            "barriers": load_barriers, "lines": load_lines, "planes": load_planes, "permutations": load_permutations,
            "masks": load_masks, "ensembles": load_ensembles, "curves": load_curves,
            "measurements": load_measurements,
        }  # fmt: skip
        found = {}
        for name, load in loaders.items():
            try:
                found[name] = load(run)
            except FileNotFoundError:
                found[name] = pd.DataFrame()
            found[name] = found[name].reindex(columns=DATASETS[name].names)
        return cls(load_results(run), **found, search=load_search(run), manifest=load_manifest(run))


@dataclass(frozen=True)
class Entry(Generic[Make]):
    """One figure or table of the page."""

    name: str  # of its files
    title: str
    text: str  # what a reader must know of it
    make: Make
    has_place: Callable[[Frames], bool] = lambda frames: True  # whether a page of these shows it at all
    notes: Callable[[Frames], list[str]] = lambda frames: []  # what else must be known, a line each
    shown: Callable[[Frames, pd.DataFrame], pd.DataFrame] = lambda frames, table: table  # on the page; its files have all
    lacks: tuple[str, ...] = ()  # stages whose lost networks are missing in it
    nothing: str = "nothing was measured"  # why the table is empty, where it is
    analysis: str = ""  # of one's own, whose figure or table it is

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Turn whatever an analysis of one's own raises, or showing what it returned, into NothingToShow; `what` it is of."""
        try:
            yield
        except (Exception, SystemExit) as error:  # of someone else's code
            if not self.analysis or isinstance(error, NothingToShow):
                raise
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise NothingToShow(f"analysis {self.analysis}: {what}: {why}") from error


FigureEntry = Entry[Callable[[Frames, str], Figure]]
TableEntry = Entry[Callable[[Frames], pd.DataFrame]]
