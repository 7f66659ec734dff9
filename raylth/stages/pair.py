"""The stages of one replicate at one width: networks A and B, A's masks, the permutations, the arms."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raylth.analyses import ConnectConfig
from raylth.config import SweepConfig
from raylth.core.data import DATASETS
from raylth.core.masks import full_mask, mask_sparsity
from raylth.core.models import build_model
from raylth.core.permutation import derive_spec
from raylth.core.pruning import num_landing_alive, trunk_counts
from raylth.seeding import derive_seed
from raylth.stages.mask import read_mask_file
from raylth.stages.sparse import ARMS
from raylth.stages.stage import Stage, stage_key

__all__ = ["Pair"]

SPARSITY_TOLERANCE = 5e-4  # between a mask made elsewhere and the sparsity that its file is said to have


class Pair:
    """Plans one pair of networks. After `stages`, `theta` and `masks` say where its weights and masks are."""

    def __init__(self, config: SweepConfig, width: float, replicate: int) -> None:
        self.config = config
        info = DATASETS[config.data.name]
        self.model: dict[str, Any] = {
            "name": config.model.name,
            "width": width,
            "num_classes": info.num_classes,
            "in_shape": list(info.in_shape),
        }
        self.augment = info.augment if config.data.augment == "auto" else config.data.augment
        self.train_data: dict[str, Any] = {
            "name": config.data.name,
            "layout": config.data.layout if info.from_files else "embedded",
            "num_train": config.data.num_train or info.num_train,
        }
        self.test_data = {"num_test": config.data.num_test or info.num_test}
        base = config.seeds.base
        self.seeds = {name: derive_seed(base, "replicate", replicate, name) % 2**32 for name in ("A", "B")}
        self.labels = {
            "width": width,
            "replicate": replicate,
            "seed_a": self.seeds["A"],
            "seed_b": self.seeds["B"],
        }
        self.order_seed = derive_seed(base, "replicate", replicate, "sparse data") % 2**32
        self.control_seed = derive_seed(base, "replicate", replicate, "control") % 2**32
        self.match_seed = derive_seed(base, "replicate", replicate, "match") % 2**32
        self.theta: dict[tuple[str, int], str] = {}  # (network, epoch) -> key
        self.masks: dict[float, str] = {}  # sparsity -> key of A's mask, with A pruned where IMP made it

    def stages(self) -> list[Stage]:
        """Return all stages of the pair, parents before children; ValueError as `make_plan` says."""
        sparse, total = self.config.sparse, self.config.dense.epochs
        self._check_stream_site()
        arms = {name: ARMS[name] for name in sparse.arms}
        sources = {arm.weights_from for arm in arms.values()}
        permuted = any(arm.transform == "permute" for arm in arms.values())
        brought = {sparsity: self._mask(sparsity) for sparsity in sparse.sparsities} if sparse.mask_from else {}
        has_network = any(stage.settings["has_network"] for stage in brought.values())
        if has_network and "A" in sources:
            raise ValueError(
                "sparse.arms: lth starts from A's early weights, and sparse.mask_from brings the trained network only: "
                "leave lth out"
            )
        epochs = {"A": sparse.rewinds if "A" in sources else [], "B": sparse.rewinds if "B" in sources else []}
        if permuted:
            epochs["B"] = epochs["B"] + self.config.match_epochs
        needs_a = not brought or (permuted and not has_network)  # IMP starts from A, matching compares with it
        dense = {name: self._dense(name, epochs[name]) for name in epochs if epochs[name] or (name == "A" and needs_a)}
        theta = {(name, int(epoch)): key for name, stage in dense.items() for epoch, key in stage.checkpoints.items()} | {
            (name, total): stage.key for name, stage in dense.items()
        }
        made, masks = ([], {}) if brought else self._imp(theta["A", total])
        made += brought.values()
        masks |= {sparsity: stage.key for sparsity, stage in brought.items()}
        self.theta, self.masks = theta, masks
        stages = [*dense.values(), *made]
        if self.config.analyses.imp_line and not brought:
            stages += [self._imp_line(theta["A", total], stage) for stage in made]
        for sparsity, mask in masks.items():
            matches = []
            if permuted:
                a = mask if has_network else theta["A", total]
                targets = [(epoch, theta["B", epoch]) for epoch in self.config.match_epochs]
                matches = [self.match(method, a, b, epoch) for method in self.config.match.method for epoch, b in targets]
            stages += matches
            stages += [self._connect(match) for match in matches if self.config.connect]
            for rewind in sparse.rewinds:
                for name, arm in arms.items():
                    parents = {"weights": theta[arm.weights_from, rewind], "mask": mask}
                    if arm.transform == "permute":
                        for match in matches:
                            parents = {**parents, "permutation": match.key}
                            stages.append(self.sparse(name, parents, sparsity, rewind, match))
                    else:
                        stages.append(self.sparse(name, parents, sparsity, rewind, None))
        return stages

    def _dense(self, network: str, epochs: list[int]) -> Stage:
        dense = self.config.dense
        seed = self.seeds[network]
        settings = {
            **self._training(dense.recipe(dense.epochs, dense.lr), derive_seed(seed, "data")),
            "init_seed": derive_seed(seed, "init"),
        }

        def key(epoch: int) -> str:
            return stage_key("dense", {**settings, "epoch": epoch}, {})

        early = sorted({epoch for epoch in epochs if epoch < dense.epochs})
        return Stage(
            "dense",
            key(dense.epochs),
            settings,
            parents={},
            labels={**self.labels, "network": network, "sparsity": 0.0},
            epochs=dense.epochs,
            checkpoints={str(epoch): key(epoch) for epoch in early},
        )

    def _imp(self, dense: str) -> tuple[list[Stage], dict[float, str]]:
        """Return the shared trunk with all landing rounds, and for each sparsity the key of A's mask."""
        imp = self.config.imp
        total = self._num_prunable()
        alive = {sparsity: num_landing_alive(total, sparsity) for sparsity in self.config.sparse.sparsities}
        try:
            counts = trunk_counts(total, imp.prune_fraction, min(alive.values()))
        except ValueError as error:
            raise ValueError(f"sparse.sparsities: {max(alive):g} cannot be reached: {error}") from error
        trunk: list[Stage] = []
        for number, kept in enumerate(counts[1:], start=1):
            parent = trunk[-1].key if trunk else dense
            trunk.append(self._round(number, parent, {"fraction": imp.prune_fraction}, 1 - kept / total))
        keys = [dense, *(stage.key for stage in trunk)]
        landings: list[Stage] = []
        masks = {}
        for sparsity, target in alive.items():
            number = max(n for n, kept in enumerate(counts) if kept >= target)
            if counts[number] == target and number > 0:  # the trunk itself lands here
                masks[sparsity] = keys[number]
                continue
            landings.append(self._round(number + 1, keys[number], {"sparsity": sparsity}, sparsity))
            masks[sparsity] = landings[-1].key
        return trunk + landings, masks

    def _round(self, number: int, parent: str, amount: dict[str, float], sparsity: float) -> Stage:
        imp = self.config.imp
        settings = {
            **self._training(imp.recipe(imp.epochs_per_round, imp.lr), derive_seed(self.seeds["A"], "imp", number)),
            "amount": amount,
            "prune_shortcuts": imp.prune_shortcuts,
        }
        labels = {
            **self.labels,
            "network": "A",
            "imp_round": number,
            "sparsity": sparsity,
            "landing": "sparsity" in amount,
        }
        parents = {"network": parent}
        return Stage("imp", stage_key("imp", settings, parents), settings, parents, labels, imp.epochs_per_round)

    def _mask(self, sparsity: float) -> Stage:
        """Read A's mask for one sparsity from its file; the file's bytes, not its place, decide the key."""
        prune_shortcuts = self.config.imp.prune_shortcuts
        path = self._mask_path(sparsity)
        try:
            brought = read_mask_file(path, self._shapes(), prune_shortcuts=prune_shortcuts)
        except ValueError as error:
            raise ValueError(f"sparse.mask_from: {error}") from error
        found = mask_sparsity(brought.mask)
        if abs(found - sparsity) > SPARSITY_TOLERANCE:
            raise ValueError(
                f"sparse.sparsities: {sparsity:g} asked for, but {path} prunes {found:.4f} of the prunable weights"
            )
        settings = {
            "model": self.model,
            "data": {**self.train_data, **self.test_data},
            "sha256": brought.sha256,
            "has_network": brought.weights is not None,
            "prune_shortcuts": prune_shortcuts,
        }
        labels = {**self.labels, "network": "A", "sparsity": sparsity, "path": str(path)}
        return Stage("mask", stage_key("mask", settings, {}), settings, parents={}, labels=labels)

    def _mask_path(self, sparsity: float) -> Path:
        """Fill in the places of `sparse.mask_from`."""
        template = self.config.sparse.mask_from
        assert template is not None
        places = {"replicate": self.labels["replicate"], "width": f"{self.labels['width']:g}", "sparsity": f"{sparsity:g}"}
        try:
            return Path(template.format(**places)).absolute()
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"sparse.mask_from: {template!r} may hold {{replicate}}, {{sparsity}} and {{width}} only"
            ) from error

    def match(self, method: str, dense_a: str, dense_b: str, epoch: int) -> Stage:
        """Plan the permutation from A's weights to those of B at an epoch."""
        match = self.config.match
        settings: dict[str, Any] = {"model": self.model, "data": self.train_data, "method": method}
        if method in ("activation", "learned"):
            settings["samples"] = match.samples or self.train_data["num_train"]
        if method == "activation" and match.sites != "post_activation":
            settings["sites"] = match.sites
        if method == "activation" and match.stream_site:
            settings["stream_site"] = match.stream_site
        if method == "learned":
            settings |= {"epochs": match.learned_epochs, "lr": match.learned_lr}
        if method in ("weight", "learned", "random"):
            settings["seed"] = self.match_seed
        parents = {"a": dense_a, "b": dense_b}
        labels = {**self.labels, "match_epoch": epoch, "match_method": method}
        return Stage("match", stage_key("match", settings, parents), settings, parents, labels)

    def _connect(self, match: Stage) -> Stage:
        assert self.config.connect is not None
        return self._line(self.config.connect, {**match.parents, "permutation": match.key}, match.labels)

    def _imp_line(self, dense: str, imp: Stage) -> Stage:
        assert self.config.analyses.imp_line is not None
        return self._line(self.config.analyses.imp_line, {"a": dense, "b": imp.key}, imp.labels)

    def _line(self, asked: ConnectConfig, parents: dict[str, str], labels: dict[str, Any]) -> Stage:
        num_train = self.train_data["num_train"]
        settings = {
            "model": self.model,
            "data": {**self.train_data, **self.test_data},
            "points": asked.points,
            "corrections": asked.corrections,
            "samples": min(asked.samples, num_train) if asked.samples else num_train,
        }
        return Stage("connect", stage_key("connect", settings, parents), settings, parents, labels)

    def sparse(
        self,
        name: str,
        parents: dict[str, str],
        sparsity: float,
        rewind: int,
        match: Stage | None,
        *,
        order_seed: int | None = None,
        labels: dict[str, Any] | None = None,
    ) -> Stage:
        """Plan one arm in one cell; `order_seed` is that of its batches (the pair's own), `labels` are added to its row's."""
        sparse, dense, arm = self.config.sparse, self.config.dense, ARMS[name]
        epochs = dense.epochs - rewind
        if sparse.schedule == "fresh":
            recipe = sparse.recipe(epochs, sparse.lr)
        else:
            recipe = dense.recipe(epochs, dense.lr, schedule_epochs=dense.epochs, schedule_start=rewind)
        seed = self.order_seed if order_seed is None else order_seed
        settings = {**self._training(recipe, seed), "mask_transform": {"name": arm.transform}}
        if arm.seeded:
            settings["mask_transform"]["seed"] = self.control_seed
        named = {
            **self.labels,
            "network": arm.weights_from,
            "arm": name,
            "sparsity": sparsity,
            "rewind_epoch": rewind,
            "match_epoch": match.labels["match_epoch"] if match else None,
            "match_method": match.labels["match_method"] if match else None,
            "schedule": sparse.schedule,
            **(labels or {}),
        }
        return Stage("sparse", stage_key("sparse", settings, parents), settings, parents, named, epochs)

    def _training(self, recipe: Any, seed: int) -> dict[str, Any]:
        """The settings of anything that trains."""
        return {
            "model": self.model,
            "data": {**self.train_data, **self.test_data},
            "augment": self.augment,
            "recipe": asdict(recipe),
            "seed": seed,
        }

    def _num_prunable(self) -> int:
        mask = full_mask(self._shapes(), prune_shortcuts=self.config.imp.prune_shortcuts)
        return sum(alive.numel() for alive in mask.values())

    def _shapes(self) -> nn.Module:
        """The network without its values."""
        with torch.device("meta"):
            return build_model(**{**self.model, "in_shape": tuple(self.model["in_shape"])})

    def _check_stream_site(self) -> None:
        """Raise ValueError unless the network has every group and site that `match.stream_site` names."""
        match = self.config.match
        if match.stream_site:
            model = build_model(**{**self.model, "in_shape": tuple(self.model["in_shape"])})
            spec = derive_spec(model, torch.zeros(2, *self.model["in_shape"]))
            try:
                spec.watch(match.sites, match.stream_site)
            except ValueError as error:
                raise ValueError(f"match.{error}") from error
