"""What a stage runs with: a store, the data on a device, and callbacks for progress. No part of it can change a result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raylth.config.data import DataConfig
from raylth.core.data import Dataset, Split, load_dataset
from raylth.core.data.streamed.dataset import ImageFiles
from raylth.core.precision import set_precision
from raylth.core.training.allocator import keep_freed_memory
from raylth.core.training.data_parallel import ALONE, Team
from raylth.core.training.engines.program import EngineName
from raylth.stages.async_writes import Uploads
from raylth.stages.stage import Artefact
from raylth.store import Store

__all__ = ["Context", "Load", "load_data", "make_context"]

Load = Callable[[str, str], dict[str, np.ndarray]]  # (key, file) -> named arrays


def _publishes_nothing(key: str, artefact: Artefact) -> None:
    raise RuntimeError(f"{key}: a stage publishes through run_stage")


@dataclass(frozen=True)
class Context:
    """Everything around a stage. `load` reads a parent's arrays; `progress(key, n)` reports n more epochs."""

    store: Store
    load: Load
    train: Split
    test: Split
    data_sha256: str
    device: str
    evaluate_every: int = 0
    progress: Callable[[str, int], None] = lambda key, epochs: None
    state_every: int = 0  # epochs between two saved states of a training; 0: only when the process is asked to stop
    state_seconds: float = 0.0  # at least so far apart
    stopping: Callable[[], bool] = lambda: False  # whether the process was asked to stop
    publish: Callable[[str, Artefact], None] = _publishes_nothing  # what is finished before its stage is
    uploads: Uploads = field(default_factory=Uploads)  # writes that continue behind the stage
    engine: EngineName = "eager"  # that trains, where it is proved on this device
    note: Callable[[str], None] = lambda line: None  # reports a line to the driver
    team: Team = ALONE  # the processes that run the same stage together; the first of them writes
    measured: Callable[[str, dict[str, Any]], None] = lambda key, point: None  # called with each evaluated point of a curve


def load_data(data: DataConfig, staging: str | None = None, *, to_train: bool = True) -> Dataset:
    """Load the data set that a sweep names; DataError names the path of what is missing or corrupt.

    Images that stay in files are read from copies below `staging`, which each machine makes when it first needs them; if not
    `to_train`, none is read. A loader that is named must be installed here where they are.
    """
    dataset = load_dataset(
        data.name,
        root=data.root,
        layout=data.layout,
        download=data.download,
        resolution=data.resolution,
        normalisation=data.normalisation,
        num_train=data.num_train,
        num_test=data.num_test,
    )
    if data.holdout:
        return dataset.holding_out(data.holdout)
    if not (to_train and isinstance(dataset, ImageFiles)):
        return dataset
    return dataset.staged(staging).loaded_by(data.loader)


def make_context(
    store: Store,
    dataset: Dataset,
    *,
    data_sha256: str | None = None,
    device: str = "cpu",
    load: Load | None = None,
    evaluate_every: int = 0,
    progress: Callable[[str, int], None] = lambda key, epochs: None,
    state_every: int = 0,
    state_seconds: float = 0.0,
    stopping: Callable[[], bool] = lambda: False,
    engine: EngineName = "eager",
    note: Callable[[str], None] = lambda line: None,
    team: Team = ALONE,
    measured: Callable[[str, dict[str, Any]], None] = lambda key, point: None,
) -> Context:
    """Copy the data to the device once, and make torch's kernels reproducible there and its float32 products float32."""
    if device == "cpu":
        keep_freed_memory()
    set_precision("float32")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    train, test = dataset.splits(device)
    return Context(
        store,
        load or store.tensors,
        train,
        test,
        data_sha256 or dataset.fingerprint(),
        device,
        evaluate_every,
        progress,
        state_every,
        state_seconds,
        stopping,
        engine=engine,
        note=note,
        team=team,
        measured=measured,
    )
