"""Plans what `analyses` asks for: stages that measure networks, and the few networks that are there for that alone."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raylth.analyses import ANALYSES
from raylth.arms import ARMS
from raylth.common.seeding import derive_seed
from raylth.config.across import AcrossConfig
from raylth.config.analyses import BASES, EnsembleConfig, NetworksConfig, parse_end
from raylth.config.sweep import SweepConfig
from raylth.core.matching.matcher import MATCHERS
from raylth.core.models import code_of
from raylth.stages.planning.replicate import Replicate
from raylth.stages.planning.universes import universe
from raylth.stages.settings import AnalysisSettings, EnsembleSettings, OverlapSettings, PlaneSettings, StageSettings
from raylth.stages.stage import Stage, stage_key

__all__ = ["measures"]


def measures(config: SweepConfig, pairs: Sequence[Replicate]) -> list[Stage]:
    """Plan the analyses of all pairs of one width, which are planned themselves.

    Raises ValueError, which starts with the setting's key path, for networks that this sweep does not make.
    """
    asked = config.measured
    planned = [stage for pair in pairs for stage in _of_pair(config, pair)]
    for name, own in asked.custom.items():
        planned += _across(name, own, pairs) if ANALYSES[name].across_replicates else []
    return planned + (_ensembles(config, asked.ensemble, pairs) if asked.ensemble else [])


def _of_pair(config: SweepConfig, pair: Replicate) -> list[Stage]:
    asked, planned = config.measured, list[Stage]()
    if config.connect and config.connect.unmatched and {("A", total := config.dense.epochs), ("B", total)} <= set(pair.theta):
        ends = {"a": pair.theta["A", total], "b": pair.theta["B", total]}
        planned.append(pair.line(config.connect, ends, pair.labels, "A - B"))
    if asked.imp_line and pair.rounds:
        dense = pair.theta["A", config.dense.epochs]
        planned += [pair.line(asked.imp_line, {"a": dense, "b": one.key}, one.labels, "A - imp") for one in pair.rounds]
    for number, line in enumerate(asked.lines):
        assert line.between is not None
        assert line.sparsity is not None
        assert line.rewind is not None
        moves, parents, needed = _ends(pair, f"lines.{number}.between", line.between, line.sparsity, line.rewind)
        cell = {**pair.labels, "sparsity": line.sparsity, "rewind_epoch": line.rewind}
        planned += [*needed, pair.line(line, parents, cell, " - ".join(line.between), moves)]
    for number, plane in enumerate(asked.planes):
        assert plane.through is not None
        assert plane.sparsity is not None
        assert plane.rewind is not None
        moves, parents, needed = _ends(pair, f"planes.{number}.through", plane.through, plane.sparsity, plane.rewind)
        measured = PlaneSettings(
            **pair.evaluation(plane.samples),
            moves=moves,
            resolution=plane.resolution,
            margin=plane.margin,
            correction=plane.correction,
        )
        labels: dict[str, Any] = {
            **pair.labels, "sparsity": plane.sparsity, "rewind_epoch": plane.rewind, "between": ", ".join(plane.through),
        }  # fmt: skip
        planned += [*needed, _stage("plane", measured, parents, labels)]
    if asked.overlap:
        planned += _overlaps(config, pair, own=asked.overlap.own)
    if asked.match_quality:
        planned += _match_quality(config, pair)
    for name, own in asked.custom.items():
        planned += [] if ANALYSES[name].across_replicates else _custom(name, own, pair)
    return planned


def _custom(name: str, asked: NetworksConfig, pair: Replicate) -> list[Stage]:
    """Plan a custom analysis, in the cell that its settings name."""
    assert asked.sparsity is not None
    assert asked.rewind is not None
    moves, parents, needed = _ends(pair, f"custom.{name}.networks", asked.networks, asked.sparsity, asked.rewind)
    return [*needed, _analysis(name, asked, pair, parents, pair.labels, moves=moves)]


def _across(name: str, asked: NetworksConfig, pairs: Sequence[Replicate]) -> list[Stage]:
    """Plan a custom analysis of the networks of all replicates, and the universe whose order of units they are moved to."""
    field, first = f"analyses.custom.{name}", pairs[0]
    if not isinstance(asked, AcrossConfig):
        raise ValueError(f"{field}: its settings are not a subclass of {AcrossConfig.__module__}.{AcrossConfig.__name__}")
    assert asked.sparsity is not None
    assert asked.rewind is not None
    if len(pairs) < 2:
        raise ValueError(f"{field}: needs the networks of two replicates or more, and seeds.replicates is {len(pairs)}")
    parents, homes = {}, {}
    try:
        for number, pair in enumerate(pairs):
            for base in asked.networks:
                role = f"{base} {number}"
                parents[role] = pair.find(base, asked.sparsity, asked.rewind)
                homes[role] = pair.trained(_origin(base), asked.sparsity)
        has_both = all(("B", first.config.dense.epochs) in pair.theta for pair in pairs)
        dense = [pair.trained(one, asked.sparsity) for pair in pairs for one in ("AB" if has_both else "A")]
    except KeyError as error:
        raise ValueError(f"{field}.networks: {error.args[0]}") from error
    dense = list(dict.fromkeys(dense))
    found = universe(first, asked.method, dense, first.config.dense.epochs)
    places = {role: dense.index(key) for role, key in homes.items()}
    labels = {"width": first.labels["width"]}
    parents["universe"] = found.key
    return [found, _analysis(name, asked, first, parents, labels, places=places)]


def _origin(base: str) -> str:
    """Return the dense network, A or B, whose order of units a network has: its weights are that one's, trained on."""
    if base in BASES:
        return "B" if base == "B" else "A"
    return ARMS[base].weights_from


def _analysis(
    name: str,
    asked: NetworksConfig,
    pair: Replicate,
    parents: dict[str, str],
    labels: Mapping[str, Any],
    *,
    moves: Mapping[str, str | None] | None = None,
    places: Mapping[str, int] | None = None,
) -> Stage:
    settings = AnalysisSettings(
        **pair.evaluation(None),
        moves=moves,
        analysis=name,
        settings=asked.model_dump(mode="json"),
        seed=pair.analysis_seed,
        code=code_of(name, ANALYSES[name].measure),
        places=places,
    )
    cell = {"sparsity": asked.sparsity, "rewind_epoch": asked.rewind}
    between = f"{name} of {', '.join(asked.networks)}"
    return _stage("analysis", settings, parents, {**labels, **cell, "between": between})


def _stage(kind: str, settings: StageSettings, parents: dict[str, str], labels: dict[str, Any]) -> Stage:
    return Stage(kind, stage_key(kind, settings, parents), settings, parents, labels)


def _ends(
    pair: Replicate, field: str, names: Sequence[str], sparsity: float, rewind: int
) -> tuple[Mapping[str, str | None] | None, dict[str, str], list[Stage]]:
    """Return moves and parents of a stage that loads the named networks, and the match that it needs, if any."""
    ends = [parse_end(name) for name in names]
    roles = string.ascii_lowercase[: len(ends)]
    needed = []
    try:
        parents = {role: pair.find(end.base, sparsity, rewind) for role, end in zip(roles, ends, strict=True)}
        if any(end.move for end in ends):
            needed.append(pair.best_match(sparsity))
            parents["permutation"] = needed[0].key
    except KeyError as error:
        raise ValueError(f"analyses.{field}: {error.args[0]}") from error
    moves = {role: end.move for role, end in zip(roles, ends, strict=True)}
    is_usual = moves == {"a": "pi", "b": None} or not needed  # a line's default
    return None if is_usual else moves, parents, needed


def _overlaps(config: SweepConfig, pair: Replicate, *, own: bool) -> list[Stage]:
    """Plan the comparison of masks at every sparsity, and B's own masks where they are asked for."""
    planned: list[Stage] = []
    masks_of_b: dict[float, str] = {}
    try:
        if own:
            planned, masks_of_b = pair.masks_of("B")
        for sparsity, mask in pair.masks.items():
            match = pair.best_match(sparsity)
            parents = {"a": mask, "permutation": match.key}
            if own:
                parents["b"] = masks_of_b[sparsity]
            labels = {**pair.labels, "sparsity": sparsity}
            planned += [
                match,
                _stage("overlap", OverlapSettings(model=pair.model, data=pair.data), parents, labels),
            ]
    except KeyError as error:
        raise ValueError(f"analyses.overlap: {error.args[0]}") from error
    return planned


def _match_quality(config: SweepConfig, pair: Replicate) -> list[Stage]:
    """Plan matches from fewer samples and at other epochs of B, each with the line from pi(A) to the trained B."""
    asked, total = config.measured.match_quality, config.dense.epochs
    assert asked is not None
    method = config.match.method[0]
    if asked.samples and not MATCHERS[method].reads_samples:
        raise ValueError(f"analyses.match_quality.samples: matching by {method}, the first of match.method, takes no samples")
    planned = []
    try:
        a = pair.find("A", None, None)
        for samples, epoch in [*((samples, total) for samples in asked.samples), *((None, epoch) for epoch in asked.epochs)]:
            if samples is not None and samples >= pair.train_data.num_train:
                continue  # all: the match that carries the masks, where match.samples does not say otherwise
            match = pair.match(method, a, pair.theta["B", epoch], epoch, samples=samples)
            planned += [match, pair.line_to_b(asked.line, match)]
    except KeyError as error:
        raise ValueError(f"analyses.match_quality: {error.args[0]}") from error
    return planned


def _ensembles(config: SweepConfig, asked: EnsembleConfig, pairs: Sequence[Replicate]) -> list[Stage]:
    """Plan the sets of Table 1 at one width, with the networks that they need beyond the cells.

    Set number i has the mask of pair i, and its members are of that pair and those after it, the first after the last.
    """
    assert asked.sets is not None
    assert asked.members is not None
    stages: list[Stage] = []
    for name in asked.sets:
        seen = set()
        for number in range(asked.repeats):
            among = [pairs[(number + member) % len(pairs)] for member in range(asked.members)]
            keys, needed = _members(name, config, asked, among)
            if frozenset(keys) in seen:
                continue
            seen.add(frozenset(keys))
            first = among[0]
            parents = {f"member {member}": key for member, key in enumerate(keys)}
            labels = {
                "width": first.labels["width"],
                "arm": name,
                "sparsity": asked.sparsity,
                "rewind_epoch": None if name == "imp" else asked.rewind,  # imp: A itself, pruned
                "set_number": number,
            }
            settings = EnsembleSettings(model=first.model, data=first.data)
            stages += [*needed, _stage("ensemble", settings, parents, labels)]
    return stages


def _members(
    name: str, config: SweepConfig, asked: EnsembleConfig, pairs: Sequence[Replicate]
) -> tuple[list[str], list[Stage]]:
    """Return the keys of the members of one of Table 1's sets, and the stages that they need beyond the cells.

    imp: the pruned A of each pair. lth: A's mask and early weights of the first pair, each member with an order of batches of
    its own. permuted, naive: A's mask of the first pair on the B of each.
    """
    first, total = pairs[0], config.dense.epochs
    assert asked.sparsity is not None
    assert asked.rewind is not None
    if name == "imp":
        return [pair.masks[asked.sparsity] for pair in pairs], []
    mask, cell = first.masks[asked.sparsity], (asked.sparsity, asked.rewind)
    replicate = first.replicate
    keys, needed = [], list[Stage]()
    for number, pair in enumerate(pairs):
        labels = {"replicate": replicate, "seed_a": first.seeds["A"], "member": number or None}
        if name == "lth":
            parents = {"weights": first.early_a(mask, asked.rewind), "mask": mask}
            seed = derive_seed(config.seeds.base, "replicate", replicate, "sparse data", "member", number) % 2**32
            network = first.sparse(name, parents, *cell, None, order_seed=seed if number else None, labels=labels)
        else:
            parents = {"weights": pair.theta["B", asked.rewind], "mask": mask}
            match = None
            if name == "permuted":
                match = pair.match(config.match.method[0], first.trained("A", asked.sparsity), pair.theta["B", total], total)
                match = replace(match, labels={**match.labels, **labels})
                needed.append(match)
                parents["permutation"] = match.key
            network = pair.sparse(name, parents, *cell, match, labels=labels)
        keys.append(network.key)
        needed.append(network)
    return keys, needed
