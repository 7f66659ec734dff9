"""Trackio: one run per network, as it finishes, in a local database, which `trackio show` displays."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from raylth.config.tracking import Tracker
from raylth.config.types import Folder, Settings
from raylth.trackers.network import Network

__all__ = ["Trackio", "TrackioConfig", "tracker"]


class TrackioConfig(Settings):
    """Trackio: a run per network, a project per sweep, a group per kind of stage."""

    folder: Folder = Field(
        "raylth-trackio", description="Folder of the driver's machine for Trackio's databases (TRACKIO_DIR)."
    )
    project: str | None = Field(None, min_length=1, description="Trackio's project; null is the sweep's name.")


class Trackio:
    """Writes a sweep's networks as the runs of one project, each in one transaction and once.

    A run's id is the sweep's run and the network's key: what is there is whole, also after the driver was killed. Raises
    ValueError where trackio is not installed, or writes into another folder in this process already.
    """

    def __init__(self, settings: TrackioConfig, sweep: str, run: str) -> None:
        folder = Path(settings.folder).absolute()
        trackio = _imported(folder)
        if folder != trackio.TRACKIO_DIR:
            raise ValueError(f"folder: trackio writes into {trackio.TRACKIO_DIR} in this process already")
        self.storage, self.project, self.run = trackio.SQLiteStorage, settings.project or sweep, run
        self.storage.validate_project_name(self.project)
        self.storage.init_db(self.project)
        self.written = {str(record["id"]) for record in self.storage.get_run_records(self.project)}

    def write(self, network: Network) -> None:
        """Write a network: labels as its config, the curve by epoch and the final numbers as metrics."""
        identity = f"{self.run}-{network.key}"
        if identity in self.written:
            return
        rows = {epoch: dict(values) for epoch, values in network.curve}
        last, texts = rows.setdefault(network.final.get("epochs", 0), {}), dict[str, str]()
        for name, value in network.final.items():
            if isinstance(value, str):
                texts[name] = value
            else:
                last.setdefault(name, value)
        created = {"_Username": None, "_Created": datetime.now(UTC).isoformat(), "_Group": network.kind}  # as trackio.init
        origin = {"raylth.key": network.key, "raylth.run": self.run, "raylth.stage": network.kind}
        self.storage.bulk_log(
            self.project,
            f"{network.name} {network.key[:8]}",
            [*rows.values()],
            steps=[*rows],
            config={**network.labels, **texts, **origin, **created},
            run_id=identity,
        )
        self.written.add(identity)


def _imported(folder: Path) -> Any:
    """Import trackio, which reads once, at its import, where it writes."""
    before = os.environ.get("TRACKIO_DIR")
    os.environ["TRACKIO_DIR"] = str(folder)
    try:
        import trackio
    except ImportError as error:
        raise ValueError("the package trackio is not installed: pip install 'raylth[trackio]'") from error
    finally:
        os.environ.pop("TRACKIO_DIR")
        if before is not None:
            os.environ["TRACKIO_DIR"] = before
    return trackio


tracker = Tracker(open=Trackio, settings=TrackioConfig)
