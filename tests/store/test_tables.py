"""Result tables that are read while they are written."""

from raylth.store import locate, tables
from raylth.store.tables import append_rows, compact_table, read_table

RUN, KEYS = "one-1", ("a", "b", "c")


def test_rows_are_found_wherever_they_are_joined_meanwhile(tmp_path, monkeypatch):
    """A run's parts are joined, and removed, after a reader has listed them and before it reads them."""
    root = locate(tmp_path)
    for key in KEYS:
        append_rows(root, "curves", RUN, [{"key": key, "run": RUN, "epoch": 1}], {})
    read, calls = tables._read, []

    def joined_first(path):
        calls.append(path)
        if len(calls) == 1:
            monkeypatch.setattr(tables, "_read", read)
            compact_table(root, "curves", RUN, {key: rank for rank, key in enumerate(KEYS)}, {})
            monkeypatch.setattr(tables, "_read", joined_first)
        return read(path)

    monkeypatch.setattr(tables, "_read", joined_first)
    assert read_table(root, "curves", RUN)["key"].to_pylist() == list(KEYS)
    assert len(calls) > 1


def test_rows_of_a_run_that_is_joined_again_and_again_are_those_that_can_be_read(tmp_path, monkeypatch):
    root = locate(tmp_path)
    for key in KEYS:
        append_rows(root, "curves", RUN, [{"key": key, "run": RUN, "epoch": 1}], {})
    read, tries = tables._read, []
    last = sorted((root / "curves").names())[-1]

    def gone(path):
        tries.append(path.name)
        return None if path.name == last else read(path)

    monkeypatch.setattr(tables, "_read", gone)
    assert read_table(root, "curves", RUN)["key"].to_pylist() == list(KEYS[:2])
    assert tries.count(last) == tables.READ_TRIES
