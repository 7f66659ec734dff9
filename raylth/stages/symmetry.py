"""The symmetry of a sweep's networks, derived once for each architecture and kept in the store."""

import contextlib
import functools
import hashlib
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from raylth.core.models.imported import library_versions
from raylth.core.permutation import PermutationSpec, derive_spec
from raylth.core.program import architecture_of
from raylth.stages.context import Context
from raylth.stages.settings import NetworkSettings
from raylth.store import Location, fingerprint

__all__ = ["symmetry_of"]

VERSION = 1  # of the derivation; raised when it finds another symmetry, or the same one under other names
FOLDER = "symmetry"  # of the store

_known: dict[str, PermutationSpec] = {}  # in this process


def symmetry_of(model: NetworkSettings, network: nn.Module, context: Context) -> PermutationSpec:
    """Return the permutation groups of `network`, which was built by the settings `model`.

    What the store keeps is read; torch's exporter takes seconds to import. Where the store does not answer the symmetry is
    derived each time. Raises UnknownOperation and ValueError as `derive_spec` does.
    """
    example = context.train.probe(2)
    parts: dict[str, Any] = {
        "version": VERSION,
        "model": model.plain(),
        "architecture": architecture_of(network),
        "sample": list(example.shape[1:]),
        "libraries": library_versions(),
    }
    key = fingerprint(parts)
    if key in _known:
        return _known[key]
    place = context.store.root / FOLDER / f"{key}.json"
    kept = _read(place)
    _known[key] = derive_spec(network, example) if kept is None else kept
    if kept is None:
        body = _format().dump_json(_known[key])
        with contextlib.suppress(OSError):
            place.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    return _known[key]


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
