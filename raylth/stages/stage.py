"""What a stage is: one node of the study's graph, named by the settings and the parents that decide its result."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np
from typing_extensions import TypeVar

from raylth.stages.settings import StageSettings
from raylth.store import fingerprint

__all__ = ["Artefact", "S_co", "Stage", "finite", "stage_key"]

S_co = TypeVar("S_co", bound=StageSettings, default=StageSettings, covariant=True)  # the settings of one kind of stage

VERSION = 2  # of the stages' numerics; raising it gives every stage a new key


def stage_key(kind: str, settings: StageSettings, parents: Mapping[str, str], *, epoch: int | None = None) -> str:
    """Return the SHA-256 of a stage's name, its science settings and its parents' keys: 64 hexadecimal digits.

    `epoch` is for a training whose artefacts differ in nothing else.
    """
    plain = settings.plain() if epoch is None else {**settings.plain(), "epoch": epoch}
    return fingerprint({"stage": kind, "version": VERSION, "settings": plain, "parents": dict(parents)})


@dataclass(frozen=True)
class Stage(Generic[S_co]):
    """One unit of work, with the settings of its kind."""

    kind: str  # a name in `raylth.stages.kinds.KINDS`
    key: str  # of the artefact that it publishes last
    settings: S_co  # the science settings that it reads
    parents: dict[str, str]  # role -> key of an artefact
    labels: dict[str, Any]  # columns of its result row; no part of the key, and never read by the computation
    epochs: int = 0  # trained by this stage
    checkpoints: dict[str, str] = field(default_factory=dict)  # epoch -> key of a further artefact it publishes
    files: dict[str, str] = field(default_factory=dict)  # role -> file that it reads, whose SHA-256 is in the settings

    @property
    def produces(self) -> tuple[str, ...]:
        """Keys of all artefacts that the stage publishes, its own last."""
        return (*self.checkpoints.values(), self.key)

    @property
    def name(self) -> str:
        """Return a short name for people: the kind and what sets it apart."""
        shown = (
            "width",
            "replicate",
            "network",
            "arm",
            "sparsity",
            "imp_round",
            "rewind_epoch",
            "match_epoch",
            "match_method",
            "member",
            "between",
        )
        parts = [f"{label}={_short(self.labels[label])}" for label in shown if self.labels.get(label) is not None]
        return f"{self.kind}({', '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the stage as JSON-like data, so that it travels to a worker; `read_stage` reads it back."""
        return {
            "kind": self.kind,
            "key": self.key,
            "settings": self.settings.plain(),
            "parents": dict(self.parents),
            "labels": dict(self.labels),
            "epochs": self.epochs,
            "checkpoints": dict(self.checkpoints),
            "files": dict(self.files),
        }


@dataclass(frozen=True)
class Artefact:
    """What a stage makes: files of named arrays, and metrics as JSON."""

    tensors: dict[str, dict[str, np.ndarray]]
    metrics: dict[str, Any]


def finite(measured: Any) -> Any:
    """Return what was measured with None for every number that is infinite or NaN, which JSON does not have."""
    if isinstance(measured, dict):
        return {name: finite(value) for name, value in measured.items()}
    if isinstance(measured, list | tuple):
        return [finite(value) for value in measured]
    return None if isinstance(measured, float) and not math.isfinite(measured) else measured


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
