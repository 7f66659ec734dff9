"""Custom analyses: what is measured on a sweep's networks, and how the report shows it.

An analysis is one object of `Analysis`, which a sweep file names below `analyses.custom` by its import path
(`package.module:object`) or by an entry point of the group `raylth.analyses`.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raylth.common.registry import Registry, UnknownName

__all__ = ["ANALYSES", "Analysis", "MeasureInputs", "analysis_of"]


@dataclass(frozen=True)
class MeasureInputs:
    """What an analysis may read besides the networks."""

    train: Any  # raylth.core.data.Split of the training samples: `batches(size)` yields (inputs, labels) on the device
    test: Any  # likewise, of the test samples
    device: str
    seed: int  # for random numbers
    permutations: Mapping[str, Any] = field(default_factory=dict)  # across replicates: name -> a Permutation for each network


@dataclass(frozen=True)
class Analysis:
    """One kind of measurement on networks of one cell, of each replicate or of all of them together.

    `measure(networks, settings, inputs)` returns rows, each a mapping from a quantity's name to a number, a text, a bool or
    None. `networks` maps each name in `settings.networks` to its network, in evaluation mode and moved as the name says;
    they are copies. `settings` is the class of its settings, a subclass of `raylth.config.analyses.NetworksConfig`.

    With `across_replicates` it is run once for each width: `networks` maps each name to a list of its networks, one for each
    replicate, as they were trained, and `inputs.permutations` to a list of the permutations that move these to one order of
    units (`raylth.core.permutation.Permutation`). `settings` is then a subclass of `raylth.config.across.AcrossConfig`.

    `table(frame)` and `figure(frame, title)` are for the report; `frame` is what
    `raylth.report.load_measurements(run, name)` gives: a line for each row, with its network's columns. Without `table` the
    report has means over replicates, without `figure` no figure.

    Raises TypeError for a field that is none of these.
    """

    measure: Callable[[Mapping[str, Any], Any, MeasureInputs], Iterable[Mapping[str, Any]]]
    settings: type
    summary: str  # what is measured, with units: stands in the report
    table: Callable[[Any], Any] | None = None  # data frame -> data frame
    figure: Callable[[Any, str], Any] | None = None  # data frame -> matplotlib's Figure
    across_replicates: bool = False

    def __post_init__(self) -> None:
        for name in ("measure", "table", "figure"):
            found = getattr(self, name)
            if not callable(found) and (found is not None or name == "measure"):
                raise TypeError(f"{name}: should be a function, found {found!r:.60}")
        if not isinstance(self.settings, type):
            raise TypeError(f"settings: should be a class, found {self.settings!r:.60}")
        if not isinstance(self.summary, str):
            raise TypeError(f"summary: should be a string, found {self.summary!r:.60}")


BUILT_IN = {"merge": "raylth.stages.merging:merge"}  # name -> import path; loaded when a sweep or a report names it


def _built_in(name: str) -> Analysis | None:
    if name not in BUILT_IN:
        return None
    module, _, attribute = BUILT_IN[name].partition(":")
    found: Analysis = getattr(importlib.import_module(module), attribute)
    return found


ANALYSES: Registry[Analysis] = Registry(
    "analysis", group="raylth.analyses", resolve=_built_in, resolved=lambda: list(BUILT_IN)
)


def analysis_of(name: str) -> Analysis | None:
    """Return an analysis for display; None where its module is not on this machine, as for a store from elsewhere."""
    try:
        found = ANALYSES[name]
    except UnknownName:
        return None
    return found if isinstance(found, Analysis) else None
