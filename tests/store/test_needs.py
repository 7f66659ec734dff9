"""What may be removed from a store: what no run needs, and nothing else, wherever it is interrupted."""

import contextlib

import numpy as np
import pytest

from raylth.store import BrokenArtefact, Lease, Store, leased, needs
from raylth.store.location import BucketLocation, DiskLocation
from raylth.store.needs import NeedsUnknown, Usage, keep_needs, remove_artefacts, remove_run
from raylth.store.store import MANIFEST
from raylth.store.tables import DATASETS, append_rows, read_table, write_table

OWN, SHARED, OTHER, LOST = (digit * 64 for digit in "abcd")
ROW = {"key": OWN, "run": "one-1"}


def filled(place):
    """A store of two runs that share an artefact, one artefact of neither, and a saved state of the first's."""
    store = Store(place)
    for key in (OWN, SHARED, OTHER, LOST):
        store.publish(key, kind="dense", tensors={"weights": {"w": np.full(50, ord(key[0]))}}, metrics={"key": key})
    store.save_state(OWN, {"state": {"w": np.zeros(3)}}, {})
    keep_needs(store, "one-1", [OWN, SHARED])
    keep_needs(store, "two-2", [SHARED, OTHER])
    for run in ("one-1", "two-2"):
        (store.root / "runs" / run / "manifest.json").write(b"{}")
        (store.root / "runs" / run / "report/report.html").write(b"page")
        write_table(store.root, "results", run, [{**ROW, "run": run}], {})
        append_rows(store.root, "curves", run, [{"key": OWN, "run": run, "epoch": 1}], {})
    return store


def test_what_no_run_needs(place):
    store = filled(place)
    usage = Usage.read(store)
    assert usage.needs == {"one-1": {OWN, SHARED}, "two-2": {SHARED, OTHER}}
    assert usage.published == {OWN, SHARED, OTHER, LOST}
    assert usage.unneeded() == {LOST}
    assert usage.only_of("one-1") == {OWN}
    held, state = store.held()[OWN], (store.root / "states" / OWN[:2] / OWN).files()
    assert usage.bytes_of([OWN]) == sum(held.values()) + sum(state.values())
    assert usage.bytes_of(["e" * 64]) == 0


def test_a_run_is_removed_with_what_only_it_needs(place):
    store = filled(place)
    (store.root / "searches/one-1/studies.log").write(b"journal")
    remove_run(store, "one-1", Usage.read(store).only_of("one-1"))
    assert (store.root / "runs").names() == ["two-2"]
    assert set(store.held()) == {SHARED, OTHER, LOST}
    assert store.states() == set()
    assert not (store.root / "searches/one-1").files()
    for key in (SHARED, OTHER):
        assert store.tensors(key, "weights")["w"].tolist() == [ord(key[0])] * 50
    assert set(read_table(store.root, "results")["run"].to_pylist()) == {"two-2"}
    assert set(read_table(store.root, "curves")["run"].to_pylist()) == {"two-2"}
    remove_run(store, "two-2", Usage.read(store).only_of("two-2"))
    assert set(store.held()) == {LOST}
    assert not any((store.root / name).files() for name in DATASETS)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", range(10))
def test_wherever_it_is_interrupted_the_store_is_whole_and_the_same_call_does_the_rest(after, tmp_path, monkeypatch):
    store = filled(tmp_path)
    keys = Usage.read(store).only_of("one-1")
    removed, real = [], DiskLocation.remove

    def remove(self):
        if len(removed) == after:
            raise Killed
        removed.append(str(self))
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(DiskLocation, "remove", remove)
        try:
            remove_run(store, "one-1", keys)
        except Killed:
            pass
        else:
            assert after == 9, "so many are there to remove"
    usage = Usage.read(store)
    for key in usage.published:
        store.verify(key)
    assert {SHARED, OTHER, LOST} <= usage.published
    assert OWN not in usage.unneeded() or "one-1" not in usage.needs, "what is left of it is its own until all is removed"
    read_table(store.root, "results")
    if "one-1" in usage.needs:
        remove_run(store, "one-1", usage.only_of("one-1"))
    assert (store.root / "runs").names() == ["two-2"]
    assert Usage.read(store).sizes.keys() == {SHARED, OTHER, LOST}


def test_an_artefact_goes_manifest_first(tmp_path, monkeypatch):
    store = filled(tmp_path)
    order, real = [], DiskLocation.remove

    def remove(self):
        order.append(self.name)
        real(self)

    monkeypatch.setattr(DiskLocation, "remove", remove)
    store.remove(OWN)
    assert order[:2] == [MANIFEST, OWN]
    assert not store.has(OWN)
    with pytest.raises(BrokenArtefact):
        store.metrics(OWN)
    store.remove("e" * 64)  # nothing is there


def test_what_is_left_of_an_artefact_is_of_no_run_and_what_is_being_written_of_its_run(tmp_path):
    store = filled(tmp_path)
    for key in (OWN, LOST):
        (store.folder(key) / MANIFEST).remove()
    usage = Usage.read(store)
    assert usage.unneeded() == {LOST}
    assert OWN not in usage.published
    assert usage.only_of("one-1") == {OWN}


@pytest.mark.parametrize("record", [None, b"", b"[]", b"{}", b'{"keys": 3}', b'{"keys": ["a'])
def test_where_a_run_does_not_say_what_it_needs_nothing_is_unneeded(record, tmp_path):
    store = filled(tmp_path)
    place = store.root / "runs/two-2/artefacts.json"
    place.remove()
    if record is not None:
        place.write(record)
    usage = Usage.read(store)
    for asked in (usage.unneeded, lambda: usage.only_of("one-1")):
        with pytest.raises(NeedsUnknown, match="two-2: no record of the artefacts"):
            asked()
    assert usage.only_of("two-2") == set(), "it can be removed itself"
    remove_run(store, "two-2", set())
    assert Usage.read(store).unneeded() == {OTHER, LOST}


def test_a_run_that_has_not_begun_needs_nothing(tmp_path):
    """A search leaves such a folder where it settles what `precision: auto` is."""
    store = filled(tmp_path)
    (store.root / "runs/three-3/settled.json").write(b"{}")
    assert Usage.read(store).unneeded() == {LOST}
    (store.root / "runs/three-3/status.json").write(b"{}")
    with pytest.raises(NeedsUnknown, match=r"^three-3: "):
        Usage.read(store).unneeded()


def test_a_record_is_written_once_and_follows_its_plan(tmp_path, monkeypatch):
    store = filled(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(DiskLocation, "write", lambda *_, **__: pytest.fail("written again"))
        keep_needs(store, "one-1", [SHARED, OWN, OWN])
    keep_needs(store, "one-1", [OTHER])
    assert Usage.read(store).needs["one-1"] == {OTHER}


def test_living_leases_are_known_and_dead_ones_stay_where_they_are(place):
    store = filled(place)
    with Lease(store, OWN) as lease:
        assert lease.held
        assert leased(store) == {OWN}
    assert leased(store) == set()
    claim = store.root / "leases" / OTHER[:2] / f"{OTHER}.1.json"
    for content in (b'{"until": 1, "boot": "x", "pid": 1, "started": 0}', b"cut o"):
        claim.write(content)
        assert leased(store) == set()
        assert claim.exists(), "whoever only looks writes nothing"
    assert isinstance(store.root, DiskLocation | BucketLocation)


def test_what_a_sweep_comes_to_need_while_others_are_removed_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(needs, "BATCH", 1)
    store = filled(str(tmp_path))
    newer, leased_now = "e" * 64, "f" * 64
    for key in (newer, leased_now):
        store.publish(key, kind="dense", tensors={"weights": {"w": np.zeros(3)}}, metrics={})
    unneeded = Usage.read(store).unneeded()
    assert unneeded == {LOST, newer, leased_now}
    with contextlib.ExitStack() as leases:
        remove = store.remove

        def removed(key):
            remove(key)
            keep_needs(store, "three-3", [newer])
            leases.enter_context(Lease(store, leased_now))

        monkeypatch.setattr(store, "remove", removed)
        assert remove_artefacts(store, unneeded) == 2
    assert set(store.held()) == {OWN, SHARED, OTHER, newer, leased_now}
