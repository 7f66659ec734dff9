"""Actors that hold checkpoints in Ray's object store, and how a worker reads from them.

An artefact's file travels as one flat buffer, which readers on the node of the object store map without a copy. The
actor calls `ray.put` itself and keeps the reference, so it owns the object; if it dies its objects die with it, and
it starts again and refills from the store.
"""

import contextlib
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from raylth.cluster.worker.epoch_counter import EpochCounter
from raylth.store import BrokenArtefact, Store, decode_tensors

__all__ = ["CheckpointActor", "CheckpointReader", "holder_of", "start_checkpoint_actors"]

NO_ROOM = (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)
PATIENCE = 60.0  # seconds for the object store to deliver what the store itself can
HELD_KINDS = ("dense", "dynamic", "imp")  # what the actors are handed right after training


class CheckpointActor(EpochCounter):
    """Holds the files of a share of the keys; what it does not hold it reads, verified, from the store.

    It keeps at most `budget` bytes and drops the least recently used; a reader that still has an object keeps it alive. Ray
    spills to disk what the object store cannot hold. The first of these actors is the epoch counter, too: a process of its
    own would cost the start of a sweep a second.
    """

    def __init__(self, root: str, budget: int) -> None:
        super().__init__()
        self.store, self.budget = Store(root), budget
        self.refs: OrderedDict[tuple[str, str], ray.ObjectRef[np.ndarray]] = OrderedDict()
        self.sizes: dict[tuple[str, str], int] = {}

    def hold(self, key: str, name: str, buffer: np.ndarray) -> None:
        """Take over a file's bytes that were just published, in place of older ones where there is no room."""
        while True:
            try:
                self.refs[key, name] = ray.put(buffer)
                break
            except NO_ROOM:
                if not self.refs:
                    raise
                self._drop_oldest()
        self.refs.move_to_end((key, name))
        self.sizes[key, name] = buffer.nbytes
        while len(self.refs) > 1 and sum(self.sizes.values()) > self.budget:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        dropped, _ = self.refs.popitem(last=False)
        del self.sizes[dropped]

    def fetch(self, key: str, name: str) -> list[Any]:
        """Return the reference to a file's bytes, in a list so that Ray hands over the reference itself.

        Raises BrokenArtefact when the file must be read and is not what was published.
        """
        if (key, name) not in self.refs:
            self.hold(key, name, self.store.read(key, name))
        self.refs.move_to_end((key, name))
        return [self.refs[key, name]]

    def references(self, key: str) -> dict[str, Any]:
        """Return the references to all files of an artefact; none where it cannot be read, as its reader will see."""
        with contextlib.suppress(BrokenArtefact, OSError, *NO_ROOM):
            return {name: self.fetch(key, name)[0] for name in self.store.files(key)}
        return {}


def holder_of(actors: Sequence[Any], key: str) -> Any:
    """Return the one of the checkpoint actors that holds an artefact."""
    return actors[zlib.crc32(key.encode()) % len(actors)]


def start_checkpoint_actors(root: str, number: int, budget: int | None = None) -> list[Any]:
    """Start the actors, spread over the cluster's nodes; they take no CPU and restart for ever.

    Each holds at most `budget` bytes; None: what makes all of them together a third of the smallest object store.
    """
    if budget is None:
        stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
        budget = int(min(stores) / 3 / number)
    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")(CheckpointActor)
    return [remote.remote(root, budget) for _ in range(number)]


class CheckpointReader:
    """Reads artefacts through the checkpoint actors, and from the store itself when Ray cannot deliver them."""

    def __init__(self, actors: Sequence[Any], store: Store, patience: float = PATIENCE) -> None:
        self.actors, self.store, self.patience = actors, store, patience
        self.references: dict[str, Any] = {}  # artefact -> reference to those of its files, where the reader was given some

    def _actor(self, key: str) -> Any:
        return holder_of(self.actors, key)

    def load(self, key: str, name: str) -> dict[str, np.ndarray]:
        """Return a file's named arrays as read-only views of the object store.

        Raises BrokenArtefact when the file is damaged.
        """
        with contextlib.suppress(ray.exceptions.RayError, KeyError):  # then the actor is asked anew
            given = ray.get(self.references[key], timeout=self.patience)
            return decode_tensors(ray.get(given[name], timeout=self.patience))
        try:
            (ref,) = ray.get(self._actor(key).fetch.remote(key, name), timeout=self.patience)
            buffer = ray.get(ref, timeout=self.patience)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BrokenArtefact):
                raise error.cause from error
            buffer = self.store.read(key, name)  # the object store and the disk that it spills to are full
        except ray.exceptions.GetTimeoutError:
            buffer = self.store.read(key, name)  # what is spilled waits for ever while views in use fill the object store
        except (ray.exceptions.ActorUnavailableError, ray.exceptions.ActorDiedError, ray.exceptions.ObjectLostError):
            buffer = self.store.read(key, name)  # the actor or its object is gone; it refills when it is back
        return decode_tensors(buffer)

    def hand_over(self, kind: str, key: str) -> None:
        """Give the actors what a dense or IMP stage has just published, so that readers need not read the store.

        If that fails, for example because the object store is full, readers use the store.
        """
        if kind not in HELD_KINDS:
            return
        with contextlib.suppress(ray.exceptions.RayError, OSError, BrokenArtefact):
            for name in self.store.files(key):
                self._actor(key).hold.remote(key, name, self.store.read(key, name))
