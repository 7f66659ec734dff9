"""One network of a store's results, with all that the store knows of its provenance."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from raylth.config.sweep import SweepConfig
from raylth.core.data import DATASETS
from raylth.core.data.info import IMAGENET_MEAN, IMAGENET_STD, Scale
from raylth.core.masks import Mask, check_mask
from raylth.core.models import MODELS, code_of
from raylth.core.pruning import compact
from raylth.core.state import like, load_tensors
from raylth.report.results import load_results
from raylth.stages import Stage, make_plan
from raylth.stages.arrays import to_torch
from raylth.stages.settings import NetworkSettings
from raylth.stages.training import new_network
from raylth.store import BrokenArtefact, Store
from raylth.store.run_files import MANIFEST, read_run_file
from raylth.store.tables import DATASETS as TABLES

__all__ = ["Network", "Origin", "compacted", "find_network"]

NAMED_BY = "the column `key` of the results names the networks"
SHOWN = 3  # of the keys that a beginning may mean


@dataclass(frozen=True)
class Origin:
    """What the sweep's plan says of a network."""

    stage: Stage
    names: dict[str, str]  # key of an artefact -> what it is, for people
    match: Stage | None  # that found the permutation of its mask
    matched: dict[str, Any] | None  # what that match measured


@dataclass(frozen=True)
class Network:
    """A trained network: its row of the results, its run's manifest, its tensors."""

    row: dict[str, Any]  # a missing value is None
    manifest: dict[str, Any]
    model: NetworkSettings
    state: dict[str, Tensor]
    mask: Mask | None
    scale: Scale
    origin: Origin | str  # or why it is not known
    small: nn.Module | None = None  # that computes the same without units that are not used

    @property
    def key(self) -> str:
        """The key of its artefact."""
        return str(self.row["key"])

    @property
    def in_shape(self) -> tuple[int, ...]:
        """One sample's shape."""
        return self.model.in_shape

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Those that are exported: of the smaller network where there is one."""
        return self.state if self.small is None else self.small.state_dict()

    def module(self) -> nn.Module:
        """Return the network that is exported, for evaluation."""
        return self.whole() if self.small is None else self.small.eval()

    def whole(self) -> nn.Module:
        """Build the network as it was trained, for evaluation."""
        network = new_network(self.model, 0, "cpu")
        load_tensors(network, self.state)
        return network.eval()


def find_network(store: Store, beginning: str) -> Network:
    """Read the network whose key is, or begins with, `beginning`.

    Raises OSError or ValueError, one line, for a store without results and a key that names no network or several,
    BrokenArtefact and MaskBroken for one that is damaged.
    """
    row = _find_row(store, beginning)
    key, run = row["key"], row["run"]
    if row["status"] != "done":
        raise ValueError(f"{key[:12]}: there is no network: its training {row['status']} ({row['error']})")
    if "weights" not in store.files(key):
        raise ValueError(f"{key[:12]} is a mask alone, not a network: raylth.stages.export_mask writes it")
    state = to_torch(store.tensors(key, "weights"), "cpu")
    mask = to_torch(store.tensors(key, "mask"), "cpu") if "mask" in store.files(key) else None
    check_mask(state, mask or {})
    try:
        manifest = read_run_file(store.root / "runs" / run / "manifest.json", MANIFEST, needed=("config",))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{store.root / 'runs' / run}: its manifest.json is missing") from error
    origin, info = _origin(store, key, manifest["config"]), DATASETS[row["dataset"]]
    if info.content is not None and isinstance(origin, str):
        raise ValueError(
            f"{key[:12]}: how its inputs are to be normalised is not known: {row['dataset']} is not the file on which it was "
            f"trained ({origin})"
        )
    scale = info.scale()
    if manifest["config"]["data"].get("normalisation") == "imagenet":
        scale = scale._replace(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    network = Network(row, manifest, _model(row, manifest, origin), state, mask, scale, origin)
    try:
        module = network.module()
    except RuntimeError as error:
        raise ValueError(f"{key[:12]}: its weights do not fit {row['model']!r} as it is here: {error}") from error
    return replace(network, state=like(state, module.state_dict()))


def compacted(network: Network) -> Network:
    """Return a network without the units that its mask has left unused; ValueError as `raylth.core.pruning.compact`."""
    if network.mask is None:
        raise ValueError(f"{network.key[:12]} has no mask: there is nothing to leave out")
    try:
        small = compact(network.whole(), network.mask, torch.zeros(2, *network.in_shape))
    except ValueError as error:
        raise ValueError(f"{network.key[:12]}: {error}") from error
    return replace(network, small=small)


def _model(row: Mapping[str, Any], manifest: Mapping[str, Any], origin: Origin | str) -> NetworkSettings:
    """Return how the network is built; ValueError for code that may be another than the one that was trained."""
    if not isinstance(origin, str):
        return origin.stage.settings.model
    if code_of(row["model"], MODELS[row["model"]]) is not None:
        raise ValueError(f"{row['key'][:12]}: whether {row['model']!r} is the code that was trained is not known: {origin}")
    info, side = DATASETS[row["dataset"]], manifest["config"]["data"].get("resolution")
    in_shape = (info.in_shape[0], side, side) if side else info.in_shape
    model = manifest["config"]["model"]
    return NetworkSettings(
        name=row["model"],
        width=row["width"],
        init=model.get("init", "own"),
        num_classes=info.num_classes,
        in_shape=in_shape,
        options=tuple(sorted(model.get("options", {}).items())),
    )


def _find_row(store: Store, beginning: str) -> dict[str, Any]:
    """Return the row of the network that is meant; of several runs' the last that finished."""
    results = load_results(store.root)
    found = results[results["key"].str.startswith(beginning)]
    keys = found["key"].unique()
    if len(keys) > 1:
        shown = ", ".join(key[:16] for key in keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
        raise ValueError(f"{beginning!r} is a prefix of {len(keys)} keys ({shown}): give a longer one")
    if len(keys) == 0:
        raise ValueError(f"{store.root}: {_instead(store, beginning)}: {NAMED_BY}")
    finished = found[found["status"] == "done"]
    row = (found if finished.empty else finished).iloc[-1]
    known: dict[str, Any] = dict.fromkeys(TABLES["results"].names)  # a column that came after the row was written
    return known | {str(name): None if pd.isna(value) else _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """Turn numpy's numbers into Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _instead(store: Store, beginning: str) -> str:
    """Say what a key is that no network has."""
    folder = store.root / "artefacts" / beginning[:2]
    others = [key for key in folder.names() if key.startswith(beginning)] if len(beginning) > 1 else []
    if len(others) == 1 and store.has(others[0]):
        return f"{beginning!r} was made by the stage {store.kind(others[0])!r}, and is not a trained network"
    return f"no network has the key {beginning!r}"


def _origin(store: Store, key: str, config: Mapping[str, Any]) -> Origin | str:
    """Plan the network's sweep again, which knows the parents' keys; or say why that cannot be done."""
    try:
        plan = make_plan(SweepConfig.model_validate(config))
    except (ValueError, OSError) as error:
        return f"the sweep cannot be planned again here: {str(error).splitlines()[0]}"
    stages = {stage.key: stage for stage in plan.stages}
    if key not in stages:
        return "this version of raylth plans the sweep with other keys"
    names = {made: f"{stage.name}, epoch {epoch}" for stage in plan.stages for epoch, made in stage.checkpoints.items()}
    names |= {stage.key: stage.name for stage in plan.stages}
    match = stages.get(stages[key].parents.get("permutation", ""))
    matched = None
    if match is not None:
        with contextlib.suppress(BrokenArtefact):  # what it measured is then not known
            matched = store.metrics(match.key)
    return Origin(stages[key], names, match, matched)
