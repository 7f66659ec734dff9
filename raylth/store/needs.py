"""Which artefacts each run of a store needs, and what is left when a run is removed, or when none needs it.

A run records the keys of its plan in `runs/<run>/artefacts.json` before it computes any of them. Trials of a search are
recorded by no run: their results are in the search's journal.
"""

import json
from collections.abc import Iterable, Set
from dataclasses import dataclass

from raylth.store.lease import leased
from raylth.store.store import MANIFEST, Store

__all__ = ["NeedsUnknown", "Usage", "keep_needs", "remove_artefacts", "remove_run"]

RECORD = "artefacts.json"
BATCH = 50  # artefacts that are removed before it is read again which are needed
BEFORE = {"settled.json"}  # files of a run that has computed nothing yet


class NeedsUnknown(ValueError):
    """Runs that do not say which artefacts they need; the text names them, and what can be done."""


@dataclass(frozen=True)
class Usage:
    """What lies in a store, by key, and which run needs it."""

    needs: dict[str, frozenset[str] | None]  # run -> the artefacts of its plan; None: not recorded
    sizes: dict[str, int]  # bytes of whatever lies under a key: an artefact, what is left of one, a training's state
    published: frozenset[str]  # keys of whole artefacts

    @classmethod
    def read(cls, store: Store) -> "Usage":
        """Read the records of all runs, and list the store once."""
        runs = store.root / "runs"
        sizes: dict[str, int] = {}
        published = set()
        for folder in ("artefacts", "states"):
            for path, size in (store.root / folder).files().items():
                match path.split("/"):
                    case [_, key, name]:  # what lies elsewhere is not ours
                        sizes[key] = sizes.get(key, 0) + size
                        if folder == "artefacts" and name == MANIFEST:
                            published.add(key)
        return cls({name: _needs(store, name) for name in runs.names()}, sizes, frozenset(published))

    def bytes_of(self, keys: Iterable[str]) -> int:
        """Return the bytes that lie under keys."""
        return sum(self.sizes.get(key, 0) for key in keys)

    def by_others(self, run: str | None = None) -> frozenset[str]:
        """Return what runs need, all but one; NeedsUnknown where one of them does not say."""
        others = {name: keys for name, keys in self.needs.items() if name != run}
        unknown = [name for name, keys in others.items() if keys is None]
        if unknown:
            raise NeedsUnknown(
                f"{', '.join(unknown)}: no record of the artefacts that it needs (an earlier version wrote none): run its "
                "sweep file again, which computes nothing that is there, or remove it first"
            )
        return frozenset().union(*(keys for keys in others.values() if keys))

    def unneeded(self) -> set[str]:
        """Return the keys that no run needs; NeedsUnknown where one does not say."""
        return self.sizes.keys() - self.by_others()

    def only_of(self, run: str) -> set[str]:
        """Return what lies in the store for one run alone; nothing where it does not say which.

        Raises NeedsUnknown where another does not.
        """
        own = self.needs[run]
        return set() if own is None else set(own & self.sizes.keys()) - self.by_others(run)


def keep_needs(store: Store, run: str, keys: Iterable[str]) -> None:
    """Record the artefacts that a run needs, unless they are recorded; OSError where the store cannot be written."""
    needed = frozenset(keys)
    if _needs(store, run) != needed:
        record = store.root / "runs" / run / RECORD
        record.write(json.dumps({"keys": sorted(needed)}, indent=0).encode())


def remove_artefacts(store: Store, keys: Set[str], run: str | None = None) -> int:
    """Remove artefacts, but for those that a run (not `run`) or a process has come to need; returns how many those are.

    What is needed is read again before every few of them: a sweep may start meanwhile. Raises NeedsUnknown where a run does
    not say what it needs.
    """
    waiting, kept = sorted(keys), 0
    for start in range(0, len(waiting), BATCH):
        records = {name: _needs(store, name) for name in (store.root / "runs").names() if name != run}
        needed = Usage(records, {}, frozenset()).by_others() | leased(store)
        for key in waiting[start : start + BATCH]:
            if key in needed:
                kept += 1
            else:
                store.remove(key)
    return kept


def remove_run(store: Store, run: str, keys: Set[str]) -> int:
    """Remove a run: its tables, its folder, its search, and the artefacts `keys`, those that only it needs; its record last.

    Returns how many of these were kept, since another run or a process has come to need them.

    Wherever it is interrupted, the store is one in which a part of the run was never computed, and the same call does the
    rest.
    """
    from raylth.store.tables import remove_tables  # which imports pyarrow: a list needs none

    remove_tables(store.root, run)
    folder = store.root / "runs" / run
    for name in folder.names():
        if name != RECORD:
            (folder / name).remove()
    (store.root / "searches" / run).remove()
    kept = remove_artefacts(store, keys, run)
    folder.remove()
    return kept


def _needs(store: Store, run: str) -> frozenset[str] | None:
    """Return what a run recorded; None where it recorded nothing that can be read, and has begun."""
    folder = store.root / "runs" / run
    try:
        return frozenset(map(str, json.loads((folder / RECORD).read())["keys"]))
    except FileNotFoundError:
        return frozenset() if set(folder.names()) <= BEFORE else None
    except (ValueError, KeyError, TypeError):
        return None
