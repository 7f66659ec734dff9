"""The stages of one replicate at one width: networks A and B, A's masks, the permutations, the arms."""

import operator
from bisect import bisect_right
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

from raylth.arms import ARMS
from raylth.common.seeding import derive_seed
from raylth.config.analyses import ConnectConfig
from raylth.config.sweep import SweepConfig
from raylth.core.data import DATASETS
from raylth.core.masks import mask_sparsity
from raylth.core.models import MODELS, code_of
from raylth.core.pruning import num_landing_alive, trunk_counts
from raylth.stages.kinds.mask import read_mask_file
from raylth.stages.planning.shapes import num_prunable, shapes_of
from raylth.stages.stage import Stage, stage_key

__all__ = ["Pair"]

SPARSITY_TOLERANCE = 5e-4  # between a mask made elsewhere and the sparsity that its file is said to have


class Pair:
    """Plans one pair of networks. After `stages`, its dictionaries say where networks and masks are; `find` reads them."""

    def __init__(self, config: SweepConfig, width: float, replicate: int) -> None:
        self.config, self.replicate = config, replicate
        info = DATASETS[config.data.name]
        self.model: dict[str, Any] = {
            "name": config.model.name,
            "width": width,
            "init": config.model.init,
            "num_classes": info.num_classes,
            "in_shape": list(config.data.in_shape),
        }
        if (code := code_of(config.model.name, MODELS[config.model.name])) is not None:
            self.model["code"] = code
        self.augment = config.augment
        self.train_data: dict[str, Any] = {
            "name": config.data.name,
            "layout": info.layout(config.data.layout),
            "normalisation": config.data.normalisation,
            "num_train": (config.data.num_train or info.num_train) - config.data.holdout,
        }
        if (code := code_of(config.data.name, info.load)) is not None:
            self.train_data["code"] = code
        if info.is_streamed:
            self.train_data["resolution"] = config.data.in_shape[-1]
        held = config.data.holdout
        self.test_data = {"holdout": held} if held else {"num_test": config.data.num_test or info.num_test}
        base = config.seeds.base
        self.seeds = {name: derive_seed(base, "replicate", replicate, name) % 2**32 for name in ("A", "B")}
        seeds = {"seed_a": self.seeds["A"], "seed_b": self.seeds["B"]}
        self.labels = {"width": width, "replicate": replicate, **seeds}
        self.order_seed = derive_seed(base, "replicate", replicate, "sparse data") % 2**32
        self.control_seed = derive_seed(base, "replicate", replicate, "control") % 2**32
        self.match_seed = derive_seed(base, "replicate", replicate, "match") % 2**32
        self.theta: dict[tuple[str, int], str] = {}  # (network, epoch) -> key
        self.masks: dict[float, str] = {}  # sparsity -> key of A's mask, with A pruned where IMP made it
        self.rounds: list[Stage] = []  # of A's pruning
        self.arms: dict[tuple[str, float, int], str] = {}  # (arm, sparsity, rewind) -> key; of several matches the best's

    def stages(self) -> list[Stage]:
        """Return all stages of the pair, parents before children; ValueError as `make_plan` says."""
        sparse, total = self.config.sparse, self.config.dense.epochs
        arms = {name: ARMS[name] for name in sparse.arms}
        sources = {arm.weights_from for arm in arms.values()}
        permuted = any(arm.needs_match for arm in arms.values())
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
        if epochs["B"] and self.config.analyses.match_quality:
            epochs["B"] = epochs["B"] + self.config.analyses.match_quality.epochs
        needs_a = not brought or (permuted and not has_network)  # IMP starts from A, matching compares with it
        dense = {name: self._dense(name, epochs[name]) for name in epochs if epochs[name] or (name == "A" and needs_a)}
        theta = {(name, int(epoch)): key for name, stage in dense.items() for epoch, key in stage.checkpoints.items()} | {
            (name, total): stage.key for name, stage in dense.items()
        }
        made, masks = ([], {}) if brought else self._imp("A", theta["A", total])
        self.rounds = list(made)
        made += brought.values()
        masks |= {sparsity: stage.key for sparsity, stage in brought.items()}
        self.theta, self.masks, self.has_network, stages = theta, masks, has_network, [*dense.values(), *made]
        for sparsity, mask in masks.items():
            matches = []
            if permuted:
                a = mask if has_network else theta["A", total]
                targets = [(epoch, theta["B", epoch]) for epoch in self.config.match_epochs]
                own = {"carries_masks": True, **({"sparsity": sparsity} if has_network else {})}
                found = [self.match(method, a, b, epoch) for method in self.config.match.method for epoch, b in targets]
                matches = [replace(match, labels={**match.labels, **own}) for match in found]
            stages += matches
            if self.config.connect:
                stages += [self.line_to_b(self.config.connect, match) for match in matches]
            for rewind in sparse.rewinds:
                for name, arm in arms.items():
                    parents = {"weights": theta[arm.weights_from, rewind], "mask": mask}
                    if arm.needs_match:
                        for match in matches:
                            parents = {**parents, "permutation": match.key}
                            stages.append(self.sparse(name, parents, sparsity, rewind, match))
                            if self._is_best(match):
                                self.arms[name, sparsity, rewind] = stages[-1].key
                    else:
                        stages.append(self.sparse(name, parents, sparsity, rewind, None))
                        self.arms[name, sparsity, rewind] = stages[-1].key
        return stages

    def _is_best(self, match: Stage) -> bool:
        """Whether a match is by the first method, to the trained B: what analyses mean by pi."""
        labels = match.labels
        return labels["match_method"] == self.config.match.method[0] and labels["match_epoch"] == self.config.dense.epochs

    def find(self, base: str, sparsity: float | None, rewind: int | None) -> str:
        """Return the key of a network by its name in `analyses`; KeyError, with a sentence, when the sweep makes none."""
        if base == "imp" and sparsity in self.masks and self.rounds:
            return self.masks[sparsity]
        if base in ("A", "B") and (base, self.config.dense.epochs) in self.theta:
            return self.theta[base, self.config.dense.epochs]
        if sparsity is not None and rewind is not None and (base, sparsity, rewind) in self.arms:
            return self.arms[base, sparsity, rewind]
        raise KeyError(f"this sweep makes no network {base!r}: no arm starts from it, or sparse.mask_from takes its place")

    def best_match(self, sparsity: float) -> Stage:
        """Plan the match that analyses mean by pi; KeyError as `find`."""
        a = self.masks[sparsity] if self.has_network else self.find("A", None, None)
        return self.match(self.config.match.method[0], a, self.find("B", None, None), self.config.dense.epochs)

    def imp_of(self, network: str) -> tuple[list[Stage], dict[float, str]]:
        """Plan the pruning of a network; returns the rounds, and by sparsity the key of its mask. KeyError as `find`."""
        return self._imp(network, self.find(network, None, None))

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

    def _imp(self, network: str, dense: str) -> tuple[list[Stage], dict[float, str]]:
        """Return the shared trunk with all landing rounds, and for each sparsity the key of the network's mask."""
        imp = self.config.imp
        total = num_prunable(self.model, prune_shortcuts=self.config.imp.prune_shortcuts)
        alive = {sparsity: num_landing_alive(total, sparsity) for sparsity in self.config.sparse.sparsities}
        try:
            counts = trunk_counts(total, imp.prune_fraction, min(alive.values()))
        except ValueError as error:
            raise ValueError(f"sparse.sparsities: {max(alive):g} cannot be reached: {error}") from error
        trunk: list[Stage] = []
        for number, kept in enumerate(counts[1:], start=1):
            parent = trunk[-1].key if trunk else dense
            trunk.append(self._round(network, number, parent, {"fraction": imp.prune_fraction}, 1 - kept / total))
        keys = [dense, *(stage.key for stage in trunk)]
        landings: list[Stage] = []
        masks = {}
        for sparsity, target in alive.items():
            number = bisect_right(counts, -target, key=operator.neg) - 1  # the last round that keeps as many
            if counts[number] == target and number > 0:  # the trunk itself lands here
                masks[sparsity] = keys[number]
                continue
            landings.append(self._round(network, number + 1, keys[number], {"sparsity": sparsity}, sparsity))
            masks[sparsity] = landings[-1].key
        return trunk + landings, masks

    def _round(self, network: str, number: int, parent: str, amount: dict[str, float], sparsity: float) -> Stage:
        imp = self.config.imp
        settings = {
            **self._training(imp.recipe(imp.epochs_per_round, imp.lr), derive_seed(self.seeds[network], "imp", number)),
            "amount": amount,
            "prune_shortcuts": imp.prune_shortcuts,
        }
        labels = {
            **self.labels,
            "network": network,
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
            brought = read_mask_file(path, shapes_of(self.model), prune_shortcuts=prune_shortcuts)
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
        labels = {**self.labels, "network": "A", "sparsity": sparsity}
        key = stage_key("mask", settings, {})
        return Stage("mask", key, settings, parents={}, labels=labels, files={"mask": str(path)})

    def _mask_path(self, sparsity: float) -> Path:
        """Fill in the places of `sparse.mask_from`."""
        template = self.config.sparse.mask_from
        assert template is not None
        places = {"replicate": self.labels["replicate"], "width": f"{self.labels['width']:g}", "sparsity": f"{sparsity:g}"}
        try:
            named = [(name, spec or "") for _, name, spec, _ in Formatter().parse(template) if name is not None]
            if all(name in places and len(spec) <= 3 for name, spec in named):  # {width:9999999999} would fill memory
                return Path(template.format(**places)).absolute()
            error = None
        except (KeyError, IndexError, ValueError) as found:
            error = found
        raise ValueError(f"sparse.mask_from: {template!r} may hold {{replicate}}, {{sparsity}} and {{width}} only") from error

    def match(self, method: str, dense_a: str, dense_b: str, epoch: int, *, samples: int | None = None) -> Stage:
        """Plan the permutation from A's weights to those of B at an epoch, on `samples` if not on what the sweep says."""
        match = self.config.match
        settings: dict[str, Any] = {"model": self.model, "data": self.train_data, "method": method}
        if method in ("activation", "learned"):
            settings["samples"] = samples or match.samples or self.train_data["num_train"]
            if match.augment:
                settings["augment"] = self.augment
        if method == "activation":
            settings |= {"sites": match.sites, "stream_site": match.stream_site}
        if method == "learned":
            settings |= {"epochs": match.learned_epochs, "lr": match.learned_lr}
        if method in ("weight", "learned", "random") or "augment" in settings:
            settings["seed"] = self.match_seed
        parents = {"a": dense_a, "b": dense_b}
        labels = {**self.labels, "match_epoch": epoch, "match_method": method, "carries_masks": False}
        labels["match_samples"] = settings.get("samples")
        return Stage("match", stage_key("match", settings, parents), settings, parents, labels)

    def line_to_b(self, asked: ConnectConfig, match: Stage) -> Stage:
        """Plan the line from pi(A) to the trained B, for a pi that was found at any epoch of B."""
        parents = {"a": match.parents["a"], "b": self.find("B", None, None), "permutation": match.key}
        return self.line(asked, parents, match.labels, "pi(A) - B")

    def line(
        self,
        asked: ConnectConfig,
        parents: dict[str, str],
        labels: dict[str, Any],
        between: str,
        moves: dict[str, Any] | None = None,
    ) -> Stage:
        """Plan a line between two networks; `moves` are further settings where the first is not moved by pi."""
        settings = {
            **self.evaluation(asked.samples), "points": asked.points, "corrections": asked.corrections, **(moves or {}),
        }  # fmt: skip
        return Stage("connect", stage_key("connect", settings, parents), settings, parents, {**labels, "between": between})

    def evaluation(self, samples: int | None) -> dict[str, Any]:
        """The settings of what measures networks on `samples` training samples (None: all) and the test split."""
        num_train = self.train_data["num_train"]
        data = {**self.train_data, **self.test_data}
        return {"model": self.model, "data": data, "samples": min(samples, num_train) if samples else num_train}

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
        transform: dict[str, Any] = {"name": arm.transform}
        if callable(arm.transform):
            transform = {"name": name, "code": code_of(name, arm.transform)}
        if arm.needs_seed:
            transform["seed"] = self.control_seed
        settings = {**self._training(recipe, seed), "mask_transform": transform}
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
            "recipe": recipe.settings(),
            "seed": seed,
        }
