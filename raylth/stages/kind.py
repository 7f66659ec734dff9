"""A kind of stage: everything that planning, execution, scheduling and results need to know about it, in one object."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic

from raylth.stages.context import Context
from raylth.stages.graph import Graph
from raylth.stages.stage import Artefact, S_co, Stage
from raylth.stages.training import Trainee

__all__ = ["PER_POINT", "Finished", "NetworkBytes", "Rows", "StageKind"]

PER_POINT = 110  # bytes of a point of a line or a plane in the manifest, for one split

Rows = dict[str, list[dict[str, Any]]]  # result table -> rows


@dataclass(frozen=True)
class NetworkBytes:
    """What a network takes in the store, in bytes."""

    weights: int
    mask: int
    units: int  # number of units of all symmetry groups at most: every output of every layer


@dataclass(frozen=True)
class Finished(Generic[S_co]):
    """A stage that has ended, for the rows of its results."""

    stage: Stage[S_co]
    graph: Graph
    state: str  # "done", "diverged" or "failed"
    metrics: Mapping[str, Any]  # of its artefact; empty where it failed


@dataclass(frozen=True, kw_only=True)
class StageKind(Generic[S_co]):
    """One kind of stage.

    A training has `prepare`, so that several which are alike run as one program; any other kind has `compute`.
    """

    name: str  # as in keys, in `resources` and in the results' column `stage`
    settings: type[S_co]  # their class
    rank: int  # of stages that can start, those of a lower rank come first: what others wait for
    compute: Callable[[Stage[S_co], Context], dict[str, Artefact]] | None = None  # returns artefacts by key, its own last
    prepare: Callable[[Stage[S_co], Context], Trainee] | None = None
    rows: Callable[[Finished[S_co]], Rows]  # its own columns of each table; those of `raylth.store.tables` name the network
    num_bytes: Callable[[Stage[S_co], NetworkBytes], int] = lambda stage, network: 0  # that it publishes, without manifests
    feeds_arms: bool = False  # whether arms are trained from what it makes

    def __post_init__(self) -> None:
        if (self.compute is None) == (self.prepare is None):
            raise ValueError(f"stage kind {self.name!r} needs either `compute` or `prepare`")
