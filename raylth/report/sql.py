"""A store's result tables as DuckDB sees them: what `raylth results` asks."""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import pyarrow as pa

from raylth.report import results
from raylth.store import Location
from raylth.store.tables import DATASETS

__all__ = ["LOADERS", "TABLES", "ask", "check_store", "load_table"]

LOADERS: dict[str, Callable[[Location], pd.DataFrame]] = {
    name: getattr(results, f"load_{name}") for name in (*DATASETS, "arms")
}
TABLES: dict[str, pa.Schema] = {**DATASETS, "arms": DATASETS["results"].append(pa.field("settings", pa.string()))}


def check_store(place: Location) -> None:
    """Raise FileNotFoundError when no sweep has written results there."""
    is_run = place.parent.name == "runs" and (place / "manifest.json").exists()
    root = place.parent.parent if is_run else place
    if not any((root / name).names() for name in DATASETS):
        raise FileNotFoundError(f"{place}: no results here; expected {root}/results/<run>.parquet")


def load_table(place: Location, name: str) -> pa.Table:
    """Return a table with the columns that it has in this version; no rows when nothing was written."""
    schema = TABLES[name]
    try:
        frame = LOADERS[name](place)
    except FileNotFoundError:
        return schema.empty_table()
    return pa.Table.from_pandas(frame.reindex(columns=schema.names), schema=schema, preserve_index=False)


def ask(place: Location, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the columns and rows of a query, which sees the tables that it names and no file.

    Raises ValueError, one line, for SQL that DuckDB refuses, and when DuckDB is not there.
    """
    try:
        import duckdb
    except ModuleNotFoundError:
        raise ValueError("the package duckdb is not installed: pip install 'raylth[sql]'") from None
    with duckdb.connect(":memory:") as connection:
        computed = re.search(r"\bquery(_table)?\s*\(", sql, re.IGNORECASE)  # names that are not there to be read
        for name, schema in TABLES.items():
            is_named = computed or re.search(rf"\b{name}\b", sql, re.IGNORECASE)
            connection.register(name, load_table(place, name) if is_named else schema.empty_table())  # SHOW TABLES lists all
        connection.execute("SET enable_external_access = false")  # no file, no network, none of Python's variables
        try:
            found = connection.execute(sql)
            if found is None or found.description is None:
                raise ValueError("the SQL asks nothing")
            return [column[0] for column in found.description], found.fetchall()
        except duckdb.Error as error:
            raise ValueError(" ".join(str(error).partition("\nLINE ")[0].split())) from error
