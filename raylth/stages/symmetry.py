"""The symmetry of a sweep's networks, derived once for each architecture and kept in the store."""

import contextlib
import functools
import hashlib
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from raylth.core.masks import full_mask
from raylth.core.models.imported import library_versions
from raylth.core.permutation import PermutationSpec, derive_spec, restrict
from raylth.core.program import architecture_of
from raylth.core.pruning import UnitGroup, removable_units
from raylth.stages.context import Context
from raylth.stages.settings import NetworkSettings, StructureSettings
from raylth.store import Location, Store, fingerprint

__all__ = ["keep_symmetry", "structure_units", "symmetry_of"]

VERSION = 1  # of the derivation; raised when it finds another symmetry, or the same one under other names
FOLDER = "symmetry"  # of the store

_known: dict[str, PermutationSpec] = {}  # in this process


def symmetry_of(
    model: NetworkSettings, network: nn.Module, context: Context, structure: StructureSettings | None = None
) -> PermutationSpec:
    """Return the permutation groups of `network`, which was built by the settings `model`: those that keep a structure.

    What the store keeps is read; torch's exporter takes seconds to import. Where the store does not answer the symmetry is
    derived each time. Raises UnknownOperation and ValueError as `derive_spec` does.
    """
    spec = _whole_symmetry(model, network, context)
    if structure is None:
        return spec
    masked = full_mask(network, prune_shortcuts=structure.prune_shortcuts)
    return restrict(spec, structure.structure.blocks({name: alive.shape for name, alive in masked.items()}))


def structure_units(
    model: NetworkSettings, network: nn.Module, context: Context, structure: StructureSettings
) -> tuple[UnitGroup, ...]:
    """Return the units that a structure may remove as wholes; none but for the pattern `units`."""
    if structure.pattern != "units":
        return ()
    masked = full_mask(network, prune_shortcuts=structure.prune_shortcuts)
    return removable_units(network, _whole_symmetry(model, network, context), context.train.probe(2), masked)


def _whole_symmetry(model: NetworkSettings, network: nn.Module, context: Context) -> PermutationSpec:
    example = context.train.probe(2)
    place = _place(context.store, model, architecture_of(network), tuple(example.shape[1:]))
    if place.name in _known:
        return _known[place.name]
    kept = _read(place)
    _known[place.name] = derive_spec(network, example) if kept is None else kept
    if kept is None:
        _write(place, _known[place.name])
    return _known[place.name]


def keep_symmetry(store: Store, model: NetworkSettings, spec: PermutationSpec) -> None:
    """Keep in the store what was derived from a network that was built by the settings `model`."""
    assert spec.program is not None
    place = _place(store, model, spec.program.architecture, spec.program.sample)
    if not place.exists():
        _write(place, spec)


def _place(store: Store, model: NetworkSettings, architecture: str, sample: tuple[int, ...]) -> Location:
    """Return the file of a network's symmetry; its name is a hash of all that it follows from."""
    parts: dict[str, Any] = {
        "version": VERSION,
        "model": model.plain(),
        "architecture": architecture,
        "sample": list(sample),
        "libraries": library_versions(),
    }
    return store.root / FOLDER / f"{fingerprint(parts)}.json"


def _write(place: Location, spec: PermutationSpec) -> None:
    body = _format().dump_json(spec)
    with contextlib.suppress(OSError):
        place.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def _read(place: Location) -> PermutationSpec | None:
    """Return the symmetry in a file; None where there is none, or other bytes than were written."""
    with contextlib.suppress(OSError, ValidationError):
        digest, _, body = place.read().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() == digest:
            return _format().validate_json(body)
    return None


@functools.cache
def _format() -> TypeAdapter[PermutationSpec]:
    return TypeAdapter(PermutationSpec)
