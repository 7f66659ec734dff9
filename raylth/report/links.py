"""Where a report's page finds the files that it names."""

from urllib.parse import quote

from raylth.store import Location
from raylth.store.tables import DATASETS

__all__ = ["data_files"]


def data_files(run: Location, out: Location) -> list[tuple[str, str]]:
    """Return the name and the relative address of each file of a run's data, as seen from a report in `out`.

    None for a report outside the store, which may be moved without it; only files that are there.
    """
    root = run.parent.parent
    store, folder = str(root.absolute()), str(out.absolute())
    if not folder.startswith(f"{store}/"):
        return []
    up = "../" * (folder.removeprefix(f"{store}/").count("/") + 1)
    places = [(f"{dataset}.parquet", f"{dataset}/{run.name}.parquet") for dataset in DATASETS]
    places += [("manifest.json", f"runs/{run.name}/manifest.json")]
    return [(name, up + quote(path)) for name, path in places if (root / path).exists()]
