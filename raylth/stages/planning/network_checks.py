"""Tries the networks of a plan before anything is trained, each once for a store."""

import contextlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict

from torch import nn

from raylth.core.checking import BadNetwork, Uses, check_network, why_not_one_sample
from raylth.core.data.dataset import part_of
from raylth.core.fixed_entries import has_fixed_entries
from raylth.core.models import MODELS, OURS, init_model
from raylth.core.models.imported import library_versions
from raylth.core.permutation import PermutationSpec
from raylth.core.training.recipe import Recipe
from raylth.core.training.schedule import steps_per_epoch
from raylth.stages.planning.disk_estimate import in_units
from raylth.stages.planning.plan import Plan
from raylth.stages.planning.shapes import bytes_to_try, can_be_built, shapes_of
from raylth.stages.settings import (
    ConnectSettings,
    MatchSettings,
    NetworkSettings,
    OwnTransformSettings,
    PlaneSettings,
    SparseSettings,
    TrainingSettings,
)
from raylth.stages.stage import Stage
from raylth.stages.symmetry import keep_symmetry
from raylth.store import Store, fingerprint

__all__ = ["check_networks", "keep_checked", "symmetry_notes"]

VERSION = 2  # of the checks
FOLDER = "checked"  # of the store
PERMUTED = ("permute", "random_permutation")

_passed: dict[str, tuple[NetworkSettings, PermutationSpec | None]] = {}  # in this process, with the symmetry if it is used


def check_networks(plan: Plan, store: Store) -> list[str]:
    """Build the network of each width and try it as the plan's stages will; nothing is written.

    Returns the keys of what passed, for `keep_checked`; what the store keeps is not tried again. Raises ValueError, which
    starts with the setting's key path, for a network that cannot be trained, evaluated, permuted or corrected as planned,
    and for a batch of one sample on which it cannot be trained.
    """
    keys = []
    for stages in _by_network(plan.stages):
        model = stages[0].settings.model
        uses, single = _uses(plan, stages), _single(plan, stages)
        known = {
            "version": VERSION,
            "model": model.plain(),
            "uses": asdict(uses),
            "single": single,
            "libraries": library_versions(),
        }
        key = fingerprint(known)
        keys.append(key)
        if key in _passed or (store.root / FOLDER / key).exists():
            continue
        try:
            if not can_be_built(model):
                raise MemoryError  # where memory is promised that is not there, the system would end this process
            _passed[key] = model, _try(model, uses, single)
        except MemoryError:  # of this machine, which need not be one that trains
            named = f"{model.name}, width {model.width:g}"
            warnings.warn(
                f"model.name: {named} was not tried: that takes about {in_units(bytes_to_try(model))} of memory, more "
                "than is free here; whether it can be trained shows when it is",
                stacklevel=2,
            )
            continue
    return keys


def keep_checked(store: Store, keys: Iterable[str]) -> None:
    """Note in the store which networks passed, and their symmetry; if it does not answer they are tried again next time."""
    with contextlib.suppress(OSError):
        for key in keys:
            place = store.root / FOLDER / key
            if key in _passed and not place.exists():
                model, spec = _passed[key]
                if spec is not None:
                    keep_symmetry(store, model, spec)
                place.write(b"{}")


def symmetry_notes(plan: Plan) -> list[str]:
    """Say, a line each, which networks of a plan have no permutation symmetry although the plan permutes units or masks."""
    notes = []
    for stages in _by_network(plan.stages):
        model = stages[0].settings.model
        if has_fixed_entries(shapes_of(model)) and any(map(_permutes, stages)):
            arms = dict.fromkeys(str(stage.labels["arm"]) for stage in stages if stage.kind == "sparse" and _permutes(stage))
            verb = "trains" if len(arms) == 1 else "train"
            same = f": {' and '.join(arms)} {verb} what naive trains" if arms else ""
            notes.append(
                f"{model.name}, width {model.width:g}, has no permutation symmetry (model.options.asymmetric), so pi leaves "
                f"every unit where it is{same}"
            )
    return notes


def _permutes(stage: Stage) -> bool:
    """Whether a stage finds a permutation, or trains under a mask that one moves."""
    match stage.settings:
        case MatchSettings():
            return True
        case SparseSettings(mask_transform=transform):
            return transform.name in PERMUTED and not isinstance(transform, OwnTransformSettings)
        case _:
            return False


def _try(model: NetworkSettings, uses: Uses, single: dict[str, str]) -> PermutationSpec | None:
    build = _builder(model)
    named = f"{model.name}, width {model.width:g}" if model.width != 1 else model.name
    try:
        spec = check_network(build, uses)
    except BadNetwork as error:
        raise ValueError(f"model.name: {named}: {error}") from error
    if single and (why := why_not_one_sample(build, uses.in_shapes)) is not None:
        setting, numbers = next(iter(single.items()))
        raise ValueError(f"{setting}: {numbers} of one sample, on which {named} cannot be trained: {why}")
    return spec


def _builder(model: NetworkSettings) -> Callable[[int], nn.Module]:
    return lambda seed: init_model(seed, **model.arguments())


def _by_network(stages: Iterable[Stage]) -> list[list[Stage]]:
    """Gather the stages of each network."""
    found: dict[NetworkSettings, list[Stage]] = {}
    for stage in stages:
        found.setdefault(stage.settings.model, []).append(stage)
    return list(found.values())


def _uses(plan: Plan, stages: list[Stage]) -> Uses:
    """Return what the stages of one network do with it."""
    model, config = stages[0].settings.model, plan.config
    is_known = MODELS[model.name] in OURS  # what this package's own can do, its tests show
    is_correctable = is_known and not has_fixed_entries(shapes_of(model))
    shapes, corrections, is_permuted, is_half = [model.in_shape], set[str](), False, False
    for stage in stages:
        settings = stage.settings
        match settings:
            case MatchSettings() | SparseSettings():
                is_permuted |= _permutes(stage)
            case ConnectSettings():
                corrections |= set(settings.corrections)
            case PlaneSettings():
                corrections.add(settings.correction)
            case _:
                pass
        if isinstance(settings, TrainingSettings):
            recipe = settings.recipe
            is_half |= recipe.precision == "bf16" and config.resources.of(stage.kind).gpus == 0
            if recipe.first_resolution:
                shapes.append((*model.in_shape[:1], recipe.first_resolution, recipe.first_resolution))
    return Uses(
        model.num_classes,
        tuple(dict.fromkeys(shapes)),
        is_permuted and not is_known,
        () if is_correctable else tuple(sorted(corrections - {"plain"})),
        is_half,
        config.imp.prune_shortcuts,
    )


def _single(plan: Plan, stages: list[Stage]) -> dict[str, str]:
    """Return, by setting, in which numbers a training has a batch, or a worker's part of one, of one sample."""
    found: dict[str, str] = {}
    for stage in stages:
        settings = stage.settings
        if isinstance(settings, TrainingSettings):
            section = "dense" if stage.labels.get("schedule") == "rewound" or stage.kind == "dynamic" else stage.kind
            numbers = _one_sample(settings.recipe, settings.data.num_train)
            if numbers is not None:
                found.setdefault(f"{section}.batch_size", numbers)
        elif isinstance(settings, MatchSettings) and settings.samples == 1 and settings.method == "learned":
            found.setdefault("match.samples", "learned matching on 1 sample has a batch")
        elif isinstance(settings, ConnectSettings) and settings.samples == 1 and "repair" in settings.corrections:
            asked = plan.config.connect
            field = "connect.samples" if asked and asked.samples == 1 else "analyses"
            found.setdefault(field, "REPAIR by 1 sample has a batch")
    return found


def _one_sample(recipe: Recipe, samples: int) -> str | None:
    """Say from which numbers a batch of one sample comes; None where no batch has but one."""
    steps = steps_per_epoch(samples, recipe.batch_size, drop_last=recipe.drop_last)
    last = min(samples, steps * recipe.batch_size) - (steps - 1) * recipe.batch_size
    whole, workers = min(recipe.batch_size, samples), recipe.unsynced_workers or 1
    if min(whole, last) // workers > 1:
        return None
    parts = {
        part.stop - part.start for size in (whole, last) for part in (part_of(size, (n, workers)) for n in range(workers))
    }
    if 1 not in parts:
        return None
    shared = f", shared by {workers} workers," if workers > 1 else ""
    left = " with drop_last: false" if last < whole else ""
    return f"{recipe.batch_size} of {samples:,} samples{left}{shared} leaves a batch"
