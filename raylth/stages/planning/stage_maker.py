"""Makes the stages of one replicate at one width: which settings, parents and labels each has, and so its key."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any, TypedDict

from raylth.arms import ARMS
from raylth.common.seeding import derive_seed
from raylth.config.analyses import ConnectConfig
from raylth.config.sweep import SweepConfig
from raylth.core.data import ARRAYS, DATASETS
from raylth.core.masks import mask_sparsity
from raylth.core.matching.matcher import MATCHERS
from raylth.core.models import MODELS, code_of
from raylth.core.pruning.finder import FINDERS, ITERATIVE, DynamicFinder, MaskFinder
from raylth.core.pruning.structure import keeps
from raylth.core.training.recipe import Recipe
from raylth.core.training.schedule import steps_per_epoch
from raylth.stages.mask_files import read_mask_file
from raylth.stages.planning.shapes import landing, planned_units, shapes_of
from raylth.stages.settings import (
    Amount,
    ConnectSettings,
    DataSettings,
    DenseSettings,
    DynamicSettings,
    FindSettings,
    ImpSettings,
    MaskSettings,
    MatchSettings,
    NetworkSettings,
    OwnTransformSettings,
    SparseSettings,
    StructureSettings,
    TransformSettings,
)
from raylth.stages.stage import Stage, stage_key

__all__ = ["StageMaker"]

SPARSITY_TOLERANCE = 5e-4  # between a mask made elsewhere and the sparsity that its file is said to have


class Training(TypedDict):
    """The arguments of `TrainingSettings`."""

    model: NetworkSettings
    data: DataSettings
    augment: str
    recipe: Recipe
    seed: int


class Evaluation(TypedDict):
    """The arguments of `EvaluationSettings`."""

    model: NetworkSettings
    data: DataSettings
    samples: int


class StageMaker:
    """Knows a replicate's network, data and seeds; a method for each kind of stage."""

    def __init__(self, config: SweepConfig, width: float, replicate: int) -> None:
        self.config, self.replicate = config, replicate
        info = DATASETS[config.data.name]
        self.model = NetworkSettings(
            name=config.model.name,
            width=width,
            init=config.model.init,
            num_classes=info.num_classes,
            in_shape=config.data.in_shape,
            code=code_of(config.model.name, MODELS[config.model.name]),
            options=tuple(sorted(config.model.options.items())),
        )
        self.augment = config.augment
        held = config.data.holdout
        self.train_data = DataSettings(
            name=ARRAYS if info.content else config.data.name,
            layout=info.layout(config.data.layout),
            normalisation=config.data.normalisation,
            num_train=(config.data.num_train or info.num_train) - held,
            code=info.content or code_of(config.data.name, info.load),
            resolution=config.data.in_shape[-1] if info.is_streamed else None,
        )
        num_test = None if held else config.data.num_test or info.num_test
        self.data = replace(self.train_data, holdout=held or None, num_test=num_test)  # with what networks are evaluated on
        base = config.seeds.base
        self.seeds = {name: derive_seed(base, "replicate", replicate, name) % 2**32 for name in ("A", "B")}
        seeds = {"seed_a": self.seeds["A"], "seed_b": self.seeds["B"]}
        self.labels = {"width": width, "replicate": replicate, **seeds}
        pattern = config.mask.structure.model_dump()
        self.structure = (
            None
            if pattern == {"pattern": "unstructured"}
            else StructureSettings(**pattern, prune_shortcuts=config.imp.prune_shortcuts)
        )
        self.order_seed = derive_seed(base, "replicate", replicate, "sparse data") % 2**32
        self.control_seed = derive_seed(base, "replicate", replicate, "control") % 2**32
        self.match_seed = derive_seed(base, "replicate", replicate, "match") % 2**32
        self.analysis_seed = derive_seed(base, "replicate", replicate, "analysis") % 2**32

    def dense(self, network: str, epochs: list[int]) -> Stage[DenseSettings]:
        """Plan the dense training of A or B, whose weights are kept after each of `epochs`."""
        dense = self.config.dense
        seed = self.seeds[network]
        settings = DenseSettings(
            **self._training(dense.recipe(dense.epochs, dense.lr), derive_seed(seed, "data")),
            init_seed=derive_seed(seed, "init"),
        )

        def key(epoch: int) -> str:
            return stage_key("dense", settings, {}, epoch=epoch)

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

    def round(self, network: str, number: int, parent: str, amount: Amount, sparsity: float) -> Stage[ImpSettings]:
        """Plan a round of iterative magnitude pruning, which prunes by `amount` and then reaches `sparsity`."""
        imp = self.config.imp
        settings = ImpSettings(
            **self._training(imp.recipe(imp.epochs_per_round, imp.lr), derive_seed(self.seeds[network], "imp", number)),
            amount=amount,
            prune_shortcuts=imp.prune_shortcuts,
            structure=self.structure,
        )
        labels = {
            **self.labels,
            "network": network,
            "imp_round": number,
            "sparsity": sparsity,
            "landing": amount.sparsity is not None,
            "mask_finder": ITERATIVE,
        }
        parents = {"network": parent}
        return Stage("imp", stage_key("imp", settings, parents), settings, parents, labels, imp.epochs_per_round)

    def dynamic(self, name: str, network: str, sparsity: float, epochs: list[int]) -> Stage[DynamicSettings]:
        """Plan the training of A or B while a finder changes its mask; its weights are kept after each of `epochs`."""
        config, finder, seed = self.config, FINDERS[name], self.seeds[network]
        assert isinstance(finder, DynamicFinder)
        dense, asked = config.dense, config.mask.updates
        recipe = dense.recipe(dense.epochs, dense.lr)
        per_epoch = steps_per_epoch(self.train_data.num_train, recipe.batch_size, drop_last=recipe.drop_last)
        settings = DynamicSettings(
            **self._training(recipe, derive_seed(seed, "data")),
            init_seed=derive_seed(seed, "init"),
            finder=name,
            sparsity=sparsity,
            prune_shortcuts=config.imp.prune_shortcuts,
            every=asked.every or finder.every or per_epoch,
            until=asked.until or finder.until,
            fraction=asked.fraction or finder.fraction,
            finder_seed=derive_seed(seed, "finder") % 2**32,
            code=code_of(name, finder.update),
        )
        last = round(settings.until * dense.epochs * per_epoch)
        if settings.every >= last:
            raise ValueError(
                f"mask.updates.every: {settings.every} steps between two changes of {name}'s mask, which may change in the "
                f"first {last} of {dense.epochs * per_epoch} steps: at most {max(1, last - 1)} would leave one change"
            )

        def key(epoch: int) -> str:
            return stage_key("dynamic", settings, {}, epoch=epoch)

        labels = {**self.labels, "network": network, "sparsity": sparsity, "mask_finder": name}
        early = {str(epoch): key(epoch) for epoch in sorted(set(epochs))}
        own = stage_key("dynamic", settings, {})
        return Stage("dynamic", own, settings, {}, labels, epochs=dense.epochs, checkpoints=early)

    def find_mask(self, name: str, network: str, start: str, sparsity: float) -> Stage[FindSettings]:
        """Plan the search for a network's mask at one sparsity, in a network that is given."""
        finder = FINDERS[name]
        assert isinstance(finder, MaskFinder)
        if self.structure:
            landing(self.model, self.structure, sparsity)  # raises for one that the pattern cannot have
        settings = FindSettings(
            model=self.model,
            data=self.train_data,
            finder=name,
            sparsity=sparsity,
            prune_shortcuts=self.config.imp.prune_shortcuts,
            code=code_of(name, finder.find),
            seed=derive_seed(self.seeds[network], "finder") % 2**32 if finder.needs_seed else None,
            structure=self.structure,
        )
        parents = {"network": start}
        labels = {**self.labels, "network": network, "sparsity": sparsity, "mask_finder": name}
        return Stage("find", stage_key("find", settings, parents), settings, parents, labels)

    def mask_file(self, sparsity: float) -> Stage[MaskSettings]:
        """Read A's mask for one sparsity from its file; the file's bytes, not its place, decide the key."""
        prune_shortcuts = self.config.imp.prune_shortcuts
        path = self._mask_path(sparsity)
        try:
            provided = read_mask_file(path, shapes_of(self.model), prune_shortcuts=prune_shortcuts)
        except ValueError as error:
            raise ValueError(f"sparse.mask_from: {error}") from error
        found = mask_sparsity(provided.mask)
        if abs(found - sparsity) > SPARSITY_TOLERANCE:
            raise ValueError(
                f"sparse.sparsities: {sparsity:g} asked for, but {path} prunes {found:.4f} of the prunable weights"
            )
        if self.structure:
            violation = keeps(provided.mask, self.structure.structure, planned_units(self.model, self.structure))
            if violation is not None:
                raise ValueError(f"sparse.mask_from: {path}: {violation}")
        settings = MaskSettings(
            model=self.model,
            data=self.data,
            sha256=provided.sha256,
            has_network=provided.weights is not None,
            prune_shortcuts=prune_shortcuts,
        )
        labels = {**self.labels, "network": "A", "sparsity": sparsity}
        key = stage_key("mask", settings, {})
        return Stage("mask", key, settings, parents={}, labels=labels, files={"mask": str(path)})

    @cached_property
    def mask_files(self) -> dict[float, Stage[MaskSettings]]:
        """The stages that read A's masks from files, by sparsity; none where A's own are found."""
        sparse = self.config.sparse
        return {sparsity: self.mask_file(sparsity) for sparsity in sparse.sparsities} if sparse.mask_from else {}

    def match(
        self, method: str, dense_a: str, dense_b: str, epoch: int, *, samples: int | None = None
    ) -> Stage[MatchSettings]:
        """Plan the permutation from A's weights to those of B at an epoch, on `samples` if not on what the sweep says."""
        settings = self.match_settings(method, samples, self.match_seed)
        if self.structure and self.structure.structure.runs:
            settings = replace(settings, structure=self.structure)
        parents = {"a": dense_a, "b": dense_b}
        labels = {**self.labels, "match_epoch": epoch, "match_method": method, "carries_masks": False}
        labels["match_samples"] = settings.samples
        return Stage("match", stage_key("match", settings, parents), settings, parents, labels)

    def match_settings(self, method: str, samples: int | None, seed: int) -> MatchSettings:
        """Return the settings of a match by a method, on `samples` if not on what the sweep says."""
        match, matcher = self.config.match, MATCHERS[method]
        is_augmented = matcher.reads_samples and match.augment
        return MatchSettings(
            model=self.model,
            data=self.train_data,
            method=method,
            code=code_of(method, matcher.function),
            samples=(samples or match.samples or self.train_data.num_train) if matcher.reads_samples else None,
            augment=self.augment if is_augmented else None,
            own={name: getattr(match, field) for name, field in matcher.settings.items()},
            seed=seed if matcher.needs_seed or is_augmented else None,
        )

    def line(
        self,
        asked: ConnectConfig,
        parents: dict[str, str],
        labels: dict[str, Any],
        between: str,
        moves: Mapping[str, str | None] | None = None,
    ) -> Stage[ConnectSettings]:
        """Plan a line between two networks; `moves` says which is moved how, where not the first by pi."""
        settings = ConnectSettings(
            **self.evaluation(asked.samples),
            points=asked.points,
            corrections=tuple(asked.corrections),
            temperature=asked.temperature,
            moves=moves,
        )
        return Stage("connect", stage_key("connect", settings, parents), settings, parents, {**labels, "between": between})

    def evaluation(self, samples: int | None) -> Evaluation:
        """The settings of what measures networks on `samples` training samples (None: all) and the test split."""
        num_train = self.data.num_train
        return {"model": self.model, "data": self.data, "samples": min(samples, num_train) if samples else num_train}

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
    ) -> Stage[SparseSettings]:
        """Plan one arm in one cell; `order_seed` is that of its batches (the pair's own), `labels` are added to its row's."""
        sparse, dense, arm = self.config.sparse, self.config.dense, ARMS[name]
        epochs = dense.epochs - rewind
        if sparse.schedule == "fresh":
            recipe = sparse.recipe(epochs, sparse.lr)
        else:
            is_scaled = sparse.optimizer.neuron_scaling  # which dense training cannot be
            recipe = dense.recipe(
                epochs, dense.lr, schedule_epochs=dense.epochs, schedule_start=rewind, neuron_scaling=is_scaled
            )
        seed = self.order_seed if order_seed is None else order_seed
        drawn_from = self.control_seed if arm.needs_seed else None
        transform: TransformSettings
        if callable(arm.transform):
            transform = OwnTransformSettings(name=name, code=code_of(name, arm.transform), seed=drawn_from)
        else:
            transform = TransformSettings(name=arm.transform, seed=drawn_from)
        settings = SparseSettings(
            **self._training(recipe, seed), mask_transform=transform, signs=arm.signs, structure=self.structure
        )
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

    def _training(self, recipe: Recipe, seed: int) -> Training:
        """The settings of anything that trains."""
        return {"model": self.model, "data": self.data, "augment": self.augment, "recipe": recipe, "seed": seed}
