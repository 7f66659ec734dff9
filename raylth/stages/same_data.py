"""Whether data are still those that a store's stages were made from, before anything is trained or counted as done."""

import contextlib
import json
import os
from collections.abc import Callable
from datetime import datetime

from raylth.config.data import DataConfig
from raylth.core.data import DATASETS, DataError, Dataset, MissingData
from raylth.stages.context import load_data
from raylth.stages.graph import Graph
from raylth.stages.planning.plan import Plan
from raylth.store import Location, Store, fingerprint

__all__ = ["check_same_data", "load_same_data"]

SHOWN = 12  # digits of a SHA-256
DATED = 100  # artefacts whose age is looked at


def load_same_data(
    plan: Plan, graph: Graph, store: Store, note: Callable[[str], None] = lambda line: None, *, dry: bool = False
) -> Dataset | None:
    """Load a plan's data, after a look whether they are those from which the store's stages of the plan were made.

    Returns None where nothing is left to train and nothing had to be loaded: the data's files are those that were hashed
    before (path, size, times; the store remembers what they gave), or are gone, which `note` reports. Where nothing will be
    trained anyway (`dry`), nothing is fetched or written.
    Raises DataError, one line: missing or corrupt data, or what has changed, and how to continue.
    """
    data = plan.config.data
    stamp = _stamp(data)
    remembered = None if stamp is None else store.root / "data" / f"{stamp[:32]}.json"
    if graph.finished and remembered is not None and (known := _read(remembered)) is not None:
        check_same_data(plan, graph, store, known)
        return None
    to_train = not (graph.finished or dry)
    data = data if to_train else data.model_copy(update={"download": False})
    try:
        dataset = load_data(data, plan.config.resources.staging, to_train=to_train)
    except MissingData as error:
        if not graph.finished:
            raise
        note(f"{error} (the stages in the store were made when it was there)")
        return None
    found = dataset.fingerprint()
    check_same_data(plan, graph, store, found)
    if remembered is not None and not dry:
        with contextlib.suppress(OSError):  # it is hashed again next time
            remembered.write(json.dumps({"data_sha256": found}).encode())
    return dataset


def check_same_data(plan: Plan, graph: Graph, store: Store, found: str) -> None:
    """Raise DataError unless all that the store holds of a plan was made from the data whose fingerprint is `found`."""
    others = {key: made for key, made in graph.made_from.items() if made != found}
    if not others:
        return
    data, count = plan.config.data, sum(bool(others.keys() & set(stage.produces)) for stage in plan.stages)
    times = [time for key in sorted(others)[:DATED] if (time := store.published(key)) is not None]
    when = f", last on {datetime.fromtimestamp(max(times)):%Y-%m-%d %H:%M}" if times else ""
    old = " and ".join(sorted({made[:SHOWN] for made in others.values()})[:3])
    setting = "data.root" if DATASETS[data.name].from_files else "data.name"
    is_made = ":" in data.name and setting == "data.name"
    drawn = " (nothing was changed? then its load() draws without a fixed seed)" if is_made else ""
    raise DataError(
        f"{setting}: the data of {data.name} have changed: {count} of the sweep's {len(plan.stages)} stages are in "
        f"{plan.config.storage} already, made{when} from data with the SHA-256 {old}, and now it is {found[:SHOWN]}{drawn}: "
        "restore the old data, or train from the new ones in another storage (storage=...)"
    )


def _stamp(data: DataConfig) -> str | None:
    """Return a hash of how a data set's files are read, and of their names, sizes and times; None if they are not known."""
    files = DATASETS[data.name].files
    if files is None or data.root is None:
        return None
    try:
        found = [(str(file), os.stat(file)) for file in files(root=data.root, layout=data.layout)]
    except (DataError, OSError):
        return None
    entries = [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in found]
    return fingerprint({"data": data.model_dump(mode="json", exclude={"root", "download"}), "files": entries})


def _read(remembered: Location) -> str | None:
    try:
        return str(json.loads(remembered.read())["data_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
