"""Where else a sweep's networks are told of: TensorBoard, Weights & Biases, MLflow."""

import importlib.util

from raylth.config.tracking import LogConfig
from raylth.trackers.background import Background, Exporter
from raylth.trackers.mlflow import Mlflow, packages
from raylth.trackers.network import Network, networks
from raylth.trackers.tensorboard import TensorBoard
from raylth.trackers.wandb import Wandb, check_login

__all__ = ["Background", "Exporter", "Network", "check_exporters", "make_exporters", "networks"]


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


def make_exporters(log: LogConfig, sweep: str, run: str) -> list[Exporter]:
    """Return the exporters that the settings ask for, for a run of a sweep."""
    exporters: list[Exporter] = []
    if log.tensorboard:
        exporters.append(TensorBoard(log.tensorboard, sweep))
    if log.wandb:
        exporters.append(Wandb(log.wandb, sweep, run))
    if log.mlflow:
        exporters.append(Mlflow(log.mlflow, sweep, run))
    return exporters
