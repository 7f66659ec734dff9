"""Experiment trackers to which trained networks are written: TensorBoard, Weights & Biases, MLflow, and one's own."""

import importlib.util

from raylth.config.tracking import TRACKERS, LogConfig, Tracker
from raylth.config.types import Settings
from raylth.trackers.background import Background, Exporter
from raylth.trackers.mlflow import Mlflow, packages
from raylth.trackers.network import Network, networks
from raylth.trackers.tensorboard import TensorBoard
from raylth.trackers.wandb import Wandb, check_login

__all__ = [
    "Background", "Exporter", "Network", "Tracker", "check_exporters", "make_exporters", "networks", "open_trackers",
]  # fmt: skip


def check_exporters(log: LogConfig) -> None:
    """Raise ValueError, one line that starts with the setting, for an exporter that cannot work here."""
    needed = {"wandb": ["wandb"] if log.wandb else [], "mlflow": packages(log.mlflow) if log.mlflow else []}
    for setting, names in needed.items():
        for name in names:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:  # the latter: a folder of that name, such as W&B leaves
                raise ValueError(f"log.{setting}: the package {name} is not installed: pip install 'raylth[{setting}]'")
    if log.wandb and log.wandb.mode == "online":
        check_login()


def make_exporters(log: LogConfig, sweep: str, run: str) -> dict[str, Exporter]:
    """Return the exporters that the settings ask for, for a run of a sweep, by the key path of each one's setting."""
    exporters: dict[str, Exporter] = {}
    if log.tensorboard:
        exporters["log.tensorboard"] = TensorBoard(log.tensorboard, sweep)
    if log.wandb:
        exporters["log.wandb"] = Wandb(log.wandb, sweep, run)
    if log.mlflow:
        exporters["log.mlflow"] = Mlflow(log.mlflow, sweep, run)
    return exporters | open_trackers(log, sweep, run)


def open_trackers(log: LogConfig, sweep: str, run: str) -> dict[str, Exporter]:
    """Open the trackers of one's own, by key path; ValueError, one line that starts with it, for one that fails."""
    return {f"log.custom.{name}": _opened(name, settings, sweep, run) for name, settings in log.custom.items()}


def _opened(name: str, settings: Settings, sweep: str, run: str) -> Exporter:
    """Open a tracker of one's own; ValueError, one line, for whatever it raises and for what is no exporter."""
    path = f"log.custom.{name}"
    try:
        exporter: Exporter = TRACKERS[name].open(settings, sweep, run)
        can_write = callable(getattr(exporter, "write", None))
    except (Exception, SystemExit) as error:  # of someone else's code
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path}: cannot be opened: {why}") from error
    if not can_write:
        raise ValueError(f"{path}: opened a {type(exporter).__name__}, which has no method write(network)")
    return exporter
