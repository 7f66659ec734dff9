"""A run: one sweep's settings in one store, with its manifest, rows, figure and error reports."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from raylth.config.load import BadSweep
from raylth.config.sweep import SweepConfig
from raylth.core.precision import Precision
from raylth.stages import Graph, Plan, Stage, precisions_of_auto, result_rows, settle, sources_of
from raylth.store import Location, Store, fingerprint
from raylth.store.needs import keep_needs
from raylth.store.tables import DATASETS, append_rows, compact_table, set_aside_harmed, write_table
from raylth.trackers import Background, make_exporters, networks

__all__ = ["Recorder", "Run"]

SETTLED = "settled.json"  # in a run's folder
CODE = "code"  # a folder there
PRECISIONS: dict[str, Precision] = {name: name for name in get_args(Precision)}
SHOWN_FAILURES = 200  # in the manifest
PACKAGES = ("raylth", "torch", "torchvision", "ray", "numpy", "scipy", "pyarrow", "pydantic", "safetensors")


@dataclass(frozen=True)
class Run:
    """The place of one sweep's outputs: `<store>/runs/<sweep>-<8 digits of its science settings>`."""

    config: SweepConfig
    store: Store
    name: str
    settled: Mapping[str, Precision] = field(default_factory=dict)  # kind of training -> what `precision: auto` is

    @classmethod
    def open(cls, config: SweepConfig, store: Store) -> "Run":
        """Name the run after its science settings as written, so that the same sweep always finds its own folder.

        Its `config` has what they leave to the machine settled: as its folder records, else for this machine. Raises
        BadSweep for a record that cannot be read.
        """
        run = cls(config, store, f"{config.name}-{fingerprint(config.science())[:8]}")
        settled = precisions_of_auto(config)
        if settled:
            settled = precisions_of_auto(config, run._recorded())
        return replace(run, config=settle(config, settled), settled=settled)

    @property
    def folder(self) -> Location:
        """The run's folder; `raylth.report.load_results` takes it."""
        return self.store.root / "runs" / self.name

    @property
    def report(self) -> Location:
        """The page that shows this run; its figures and tables lie beside it."""
        return self.folder / "report/report.html"

    @property
    def errors(self) -> Location:
        """The folder of failed stages' tracebacks."""
        return self.folder / "errors"

    @property
    def results(self) -> Location:
        """The Parquet file with this run's networks."""
        return self.store.root / "results" / f"{self.name}.parquet"

    def keep_settled(self) -> bool:
        """Record what was settled, if nothing is recorded yet: the run uses it on any machine.

        Returns False where the store does not answer, for another try later.
        """
        place = self.folder / SETTLED
        try:
            if self.settled and not place.exists():
                place.write(json.dumps({"precision": dict(self.settled)}, indent=1).encode())
        except OSError:
            return False
        return True

    @functools.cached_property
    def sources(self) -> dict[str, tuple[str, bytes]]:
        """The modules of a user's own that the run uses: the name of a file with its content's hash, and the content."""
        found = sources_of(self.config)
        return {module: (f"{module}-{hashlib.sha256(text).hexdigest()[:8]}.py", text) for module, text in found.items()}

    def keep_sources(self) -> bool:
        """Keep the user's own modules as they are now in the run's folder; those of an earlier start stay.

        Returns False where the store does not answer, for another try later.
        """
        try:
            for name, text in self.sources.values():
                if not (place := self.folder / CODE / name).exists():
                    place.write(text)
        except OSError:
            return False
        return True

    def keep_needs(self, stages: Iterable[Stage]) -> bool:
        """Record which artefacts the run needs, so that none of them is removed as another's (`raylth store`).

        Returns False where the store does not answer, for another try later.
        """
        try:
            keep_needs(self.store, self.name, [key for stage in stages for key in stage.produces])
        except OSError:
            return False
        return True

    def _recorded(self) -> dict[str, Precision]:
        place = self.folder / SETTLED
        try:
            found = json.loads(place.read())["precision"]
            return {str(kind): PRECISIONS[name] for kind, name in found.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise BadSweep(f"storage: {self.store.root} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadSweep(
                f"storage: {place}, which says what `precision: auto` is for this run, is damaged: remove it and settle "
                "it for this machine, or write the precision in the sweep file"
            ) from error

    def write(self, tables: Mapping[str, list[dict[str, Any]]], graph: Graph) -> None:
        """Write the run's rows and its manifest, each in one step; whatever was there is replaced."""
        manifest = self._manifest(graph)
        self.keep_sources()
        keep_needs(self.store, self.name, [key for stage in graph.stages.values() for key in stage.produces])
        for dataset, rows in tables.items():
            write_table(self.store.root, dataset, self.name, rows, manifest)
        (self.folder / "manifest.json").write(json.dumps(manifest, indent=1).encode())

    def append(self, tables: Mapping[str, list[dict[str, Any]]], graph: Graph) -> None:
        """Write rows while the run continues; `compact` joins them in the end."""
        manifest = self._manifest(graph)
        for dataset, rows in tables.items():
            if rows:
                append_rows(self.store.root, dataset, self.name, rows, manifest)
        (self.folder / "manifest.json").write(json.dumps(manifest, indent=1).encode())

    def compact(self, graph: Graph) -> None:
        """Join all rows that were appended, in the order of the stages' keys, in one file per dataset."""
        manifest, order = self._manifest(graph), {key: rank for rank, key in enumerate(graph.stages)}
        for dataset in DATASETS:
            compact_table(self.store.root, dataset, self.name, order, manifest)
        (self.folder / "manifest.json").write(json.dumps(manifest, indent=1).encode())

    def _manifest(self, graph: Graph) -> dict[str, Any]:
        blocks = Counter(graph.blockers.values())
        failures = [
            {"stage": graph.stages[key].name, "state": graph.states[key], "error": error, "blocks": blocks[key]}
            for key, error in graph.errors.items()
        ]
        return {
            "run": self.name,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": self.config.model_dump(mode="json"),
            "stages": {kind: dict(counts) for kind, counts in graph.count().items()},
            "failures": failures[:SHOWN_FAILURES],
            "num_failures": len(failures),
            "packages": {name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "git_commit": _git_commit(),
            "code": {module: f"{CODE}/{name}" for module, (name, _) in self.sources.items()},
            "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "system": platform.platform()},
        }


class Recorder:
    """Writes a run's rows in bounded batches while stages end, so that a driver which dies leaves them behind."""

    def __init__(self, run: Run, plan: Plan, graph: Graph, *, batch: int = 500, seconds: float = 30.0) -> None:
        self.run, self.plan, self.graph = run, plan, graph
        self.batch, self.seconds = batch, seconds
        self.num_written = 0  # of `graph.ended`, in which everything that the store holds comes first
        self.tried_at, self.has_failed = time.monotonic(), False
        self.notes = set_aside_harmed(run.store.root, run.name)  # the rows of all stages that have ended are written again
        exporters = make_exporters(run.config.log, run.config.name, run.name)
        self.exports = [Background(exporter, setting) for setting, exporter in exporters.items()]

    def update(self) -> None:
        """Write what has ended since the last time, if it is a batch or time has come."""
        waiting = len(self.graph.ended) - self.num_written
        if not waiting:
            return
        since = time.monotonic() - self.tried_at
        if since >= self.seconds or (waiting >= self.batch and not self.has_failed):
            self.tried_at, self.has_failed = time.monotonic(), False
            try:
                self._write()
            except OSError:  # a store that does not answer: tried again later
                self.has_failed = True

    def close(self, seconds: float = float("inf")) -> None:
        """Write the rest and join all parts; wait for exporters while they make progress, or at most that many seconds."""
        try:
            while self.num_written < len(self.graph.ended):
                self._write()
            self.run.compact(self.graph)
        finally:
            end = time.monotonic() + seconds
            for export in self.exports:
                export.close(end - time.monotonic())

    def take_notes(self) -> list[str]:
        """Return what the exporters have to say since the last time, a line each."""
        own, self.notes = self.notes, []
        return [*own, *(note for export in self.exports for note in export.take_notes())]

    def _write(self) -> None:
        ended = self.graph.ended[self.num_written : self.num_written + self.batch]
        keys = [key for key in dict.fromkeys(ended) if self.graph.states[key] in ("done", "diverged", "failed")]
        rows = result_rows(self.plan, self.graph, self.run.store, self.run.name, keys)
        self.run.append(rows, self.graph)
        self.num_written += len(ended)
        for export in self.exports:
            export.add(networks(rows, self.graph))


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _git_commit() -> str | None:
    """Return the commit of the source tree that this package runs from, None when it is not a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
