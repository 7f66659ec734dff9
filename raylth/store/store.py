"""A content-addressed store of finished stages: an artefact is there exactly when its manifest is.

    <root>/artefacts/<key[:2]>/<key>/MANIFEST.json            written last
                                    /<name>.<sha256[:16]>.safetensors
          /states/<key[:2]>/<key>/                            of a training that is not finished; the same files
          /broken/<key>-<n>/                                  set aside, never deleted
          /results/  /curves/  /permutations/                 Parquet, one file per run (raylth.store.tables)
          /data/<stamp>.json                                  the SHA-256 of data whose files were hashed
          /symmetry/<hash>.json                               an architecture's symmetry; derived again where it is missing
          /runs/<run>/                                        manifest, figures and errors of one sweep file

A file appears whole or not at all (raylth.store.location); its name carries its own hash, so two writers of one key cannot
mix their files. Everything inside is relative: a store that is moved or copied keeps working, also from disk to a bucket.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raylth.store.hashing import fingerprint
from raylth.store.location import Location, locate
from raylth.store.serialization import decode_tensors, encode_tensors

__all__ = ["SCHEMA", "BrokenArtefact", "NewerStore", "Store"]

SCHEMA = 1  # of a manifest; raise it when an older program could not read what is written
MANIFEST = "MANIFEST.json"


class BrokenArtefact(RuntimeError):
    """An artefact whose bytes are not what its manifest says; `key` names it, the text names the file."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"artefact {self.key[:12]} is broken: {self.reason}"


class NewerStore(RuntimeError):
    """A manifest that a newer version of raylth wrote."""


class Store:
    """The artefacts below one location: a path, s3:// or gs://. It has no state besides the location."""

    def __init__(self, root: str | Path | Location) -> None:
        self.root = root if isinstance(root, Location) else locate(root)

    def folder(self, key: str) -> Location:
        """Return the folder of an artefact, whether or not it exists."""
        return self.root / "artefacts" / key[:2] / key

    def has(self, key: str) -> bool:
        """Tell whether an artefact was published. Reading it verifies it; `verify` does so without using it."""
        return (self.folder(key) / MANIFEST).exists()

    def published(self, key: str) -> float | None:
        """Return when an artefact was published, in seconds since 1970; None where that is not known."""
        return (self.folder(key) / MANIFEST).modified()

    def held(self) -> dict[str, dict[str, int]]:
        """Return the sizes of the files of every artefact that was published, by key: one listing, nothing is read."""
        artefacts: dict[str, dict[str, int]] = {}
        for path, size in (self.root / "artefacts").files().items():
            match path.split("/"):
                case [_, key, name]:  # what lies elsewhere is not ours
                    artefacts.setdefault(key, {})[name] = size
        return {key: sizes for key, sizes in artefacts.items() if MANIFEST in sizes}

    def verify(self, key: str, sizes: Mapping[str, int] | None = None) -> Any:
        """Return an artefact's metrics after a look at all of it; BrokenArtefact unless all is what was published.

        With the `sizes` that its files have (`held`), those are compared, and nothing but the manifest is read.
        """
        folder, manifest = self.folder(key), self._manifest(key)
        for name, entry in manifest["files"].items():
            if sizes is None:
                self._read(key, name, folder, manifest)
            else:
                _check_size(key, entry, sizes.get(entry["path"]))
        return manifest["metrics"]

    def publish(self, key: str, *, kind: str, tensors: Mapping[str, Mapping[str, np.ndarray]], metrics: Any) -> None:
        """Publish an artefact: each group of named arrays as one file, then the manifest with every file's hash.

        `tensors` maps a file's name ("weights", "mask", "permutation") to its arrays; `metrics` is JSON. Publishing a key
        again replaces the manifest in one step. Raises OSError when the disk is full; nothing half-written is visible.
        """
        self._write(self.folder(key), key, kind, tensors, metrics)

    def remove(self, key: str) -> None:
        """Remove an artefact and the state of its training, whether or not they are there; its manifest is removed first.

        Wherever it is interrupted, the artefact is whole or not there.
        """
        (self.folder(key) / MANIFEST).remove()
        self.folder(key).remove()
        self.drop_state(key)

    def save_state(self, key: str, tensors: Mapping[str, Mapping[str, np.ndarray]], numbers: Any) -> None:
        """Save the state of the training that is to publish `key`, in place of the one before; as atomic as `publish`."""
        folder = self._state_folder(key)
        written = self._write(folder, key, "state", tensors, numbers)
        for stale in set(folder.names()) - written:
            (folder / stale).remove()

    def load_state(self, key: str) -> tuple[dict[str, dict[str, np.ndarray]], Any] | None:
        """Return the arrays and numbers of the last state that was saved, verified, or None when there is none.

        Raises BrokenArtefact when its bytes are not what was saved.
        """
        folder = self._state_folder(key)
        if not (folder / MANIFEST).exists():
            return None
        manifest = self._manifest(key, folder)
        files = {name: decode_tensors(self._read(key, name, folder, manifest)) for name in manifest["files"]}
        return files, manifest["metrics"]

    def states(self) -> set[str]:
        """Return the keys of the trainings that have a state."""
        return {parts[1] for path in (self.root / "states").files() if len(parts := path.split("/")) == 3}

    def drop_state(self, key: str) -> None:
        """Remove a training's state, whether or not there is one."""
        self._state_folder(key).remove()

    def _state_folder(self, key: str) -> Location:
        return self.root / "states" / key[:2] / key

    def _write(
        self, folder: Location, key: str, kind: str, tensors: Mapping[str, Mapping[str, np.ndarray]], metrics: Any
    ) -> set[str]:
        """Write each group of arrays as one file, then the manifest with every file's hash; return all names."""
        files = {}
        for name, arrays in tensors.items():
            data = encode_tensors(arrays)
            digest = hashlib.sha256(data).hexdigest()
            path = folder / f"{name}.{digest[:16]}.safetensors"
            path.write(data)
            files[name] = {"path": path.name, "bytes": len(data), "sha256": digest}
        body = {"schema": SCHEMA, "key": key, "kind": kind, "files": files, "metrics": metrics}
        manifest = {"sha256": fingerprint(body), **body}
        (folder / MANIFEST).write(json.dumps(manifest, indent=1, allow_nan=False).encode())
        return {MANIFEST, *(str(entry["path"]) for entry in files.values())}

    def files(self, key: str) -> tuple[str, ...]:
        """Return the names of an artefact's files."""
        return tuple(self._manifest(key)["files"])

    def kind(self, key: str) -> str:
        """Return the kind of stage that published an artefact."""
        return str(self._manifest(key)["kind"])

    def metrics(self, key: str) -> Any:
        """Return what was published as the artefact's metrics; BrokenArtefact when the manifest is damaged."""
        return self._manifest(key)["metrics"]

    def read(self, key: str, name: str) -> np.ndarray:
        """Return one file's verified bytes, (num_bytes,) uint8; BrokenArtefact when they are not what was published."""
        return self._read(key, name, self.folder(key), self._manifest(key))

    def _read(self, key: str, name: str, folder: Location, manifest: dict[str, Any]) -> np.ndarray:
        files = manifest["files"]
        if name not in files:
            raise KeyError(f"artefact {key[:12]} has no file {name!r} (it has {', '.join(files)})")
        path = folder / files[name]["path"]
        try:
            data = path.read()
        except FileNotFoundError as error:
            raise BrokenArtefact(key, f"{path.name} is missing") from error
        _check_size(key, files[name], len(data))
        if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
            raise BrokenArtefact(key, f"{path.name} does not match its SHA-256")
        return np.frombuffer(data, dtype=np.uint8)

    def tensors(self, key: str, name: str) -> dict[str, np.ndarray]:
        """Return one file's arrays, verified."""
        return decode_tensors(self.read(key, name))

    def set_aside(self, key: str) -> Location:
        """Move a broken artefact aside, so that its stage is computed again; returns its new location."""
        target = self.root / "broken"
        number = sum(1 for name in target.names() if name.startswith(key))
        aside = target / f"{key}-{number}"
        with contextlib.suppress(FileNotFoundError):  # another did so just now
            self.folder(key).move(aside)
        return aside

    def _manifest(self, key: str, folder: Location | None = None) -> dict[str, Any]:
        path = (folder or self.folder(key)) / MANIFEST
        try:
            manifest = json.loads(path.read())
            body = {name: value for name, value in manifest.items() if name != "sha256"}
            intact = manifest["sha256"] == fingerprint(body) and body["key"] == key
        except FileNotFoundError as error:
            raise BrokenArtefact(key, f"{MANIFEST} is missing") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenArtefact(key, f"{MANIFEST} is not readable ({error})") from error
        if not intact:
            raise BrokenArtefact(key, f"{MANIFEST} does not match its own SHA-256")
        if body["schema"] > SCHEMA:
            raise NewerStore(
                f"{path}: written by a newer raylth (schema {body['schema']}; this one reads up to {SCHEMA}): upgrade it"
            )
        return manifest


def _check_size(key: str, entry: Mapping[str, Any], size: int | None) -> None:
    """Raise BrokenArtefact unless a file has the size that its manifest says; None is a file that is not there."""
    if size is None:
        raise BrokenArtefact(key, f"{entry['path']} is missing")
    if size != entry["bytes"]:
        raise BrokenArtefact(key, f"{entry['path']} has {size} bytes, expected {entry['bytes']}")
