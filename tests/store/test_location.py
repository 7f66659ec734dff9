"""One contract for disks and buckets; the buckets are real servers on loopback."""

import threading
import time

import numpy as np
import pytest

from raylth.store import BrokenArtefact, Lease, StorageUnreachable, Store, locate
from raylth.store.location import BucketLocation, DiskLocation
from tests.buckets import BucketServer

KEY = "ab" + "0" * 62
TENSORS = {"weights": {"w": np.arange(6, dtype=np.float32)}, "mask": {"w": np.array([True, False, True])}}


def test_files_are_written_read_and_deleted(place):
    root = locate(place)
    assert root.names() == []
    assert root.files() == {}
    (root / "a/b").write(b"first")
    (root / "a" / "b").write(b"second one")
    (root / "c").write(b"")
    assert (root / "a/b").read() == b"second one"
    assert root.names() == ["a", "c"]
    assert root.files() == {"a/b": 10, "c": 0}
    assert ((root / "a/b").name, str((root / "a/b").parent)) == ("b", str(root / "a"))
    assert (root / "a/b").exists()
    (root / "a/b").remove()
    (root / "a/b").remove()
    assert not (root / "a/b").exists()
    with pytest.raises(FileNotFoundError):
        (root / "a/b").read()


def test_a_probe_leaves_nothing_behind(place, tmp_path):
    root = locate(place)
    root.check_writable()
    assert root.files() == {}
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        (locate(tmp_path) / "file/store").check_writable()


def test_folders_are_moved_and_deleted(place):
    root = locate(place)
    for name in ("x/1", "x/y/2"):
        (root / name).write(name.encode())
    (root / "x").move(root / "aside/x-0")
    assert root.files() == {"aside/x-0/1": 3, "aside/x-0/y/2": 5}
    (root / "aside").remove()
    assert root.files() == {}


def test_a_process_elsewhere_finds_the_same_place(place, tmp_path, monkeypatch):
    text = str(locate(place).absolute())
    (locate(place) / "x").write(b"here")
    monkeypatch.chdir(tmp_path)
    assert (locate(text) / "x").read() == b"here"


def test_artefacts_states_and_what_is_broken(place):
    store = Store(place)
    assert not store.has(KEY)
    assert store.held() == {}
    store.publish(KEY, kind="imp", tensors=TENSORS, metrics={"accuracy": 1})
    np.testing.assert_array_equal(store.tensors(KEY, "mask")["w"], TENSORS["mask"]["w"])
    sizes = store.held()
    assert store.verify(KEY) == store.verify(KEY, sizes[KEY]) == {"accuracy": 1}
    store.save_state(KEY, TENSORS, 1)
    store.save_state(KEY, {"weights": {"w": np.zeros(3)}}, 2)
    assert store.load_state(KEY)[1] == 2
    assert len((store.root / "states" / KEY[:2] / KEY).names()) == 2, "the state before is gone"
    store.drop_state(KEY)
    assert store.load_state(KEY) is None
    weights = next(name for name in sizes[KEY] if name.startswith("weights"))
    (store.folder(KEY) / weights).write(b"short")
    with pytest.raises(BrokenArtefact, match=r"weights.* has 5 bytes, expected"):
        store.verify(KEY, store.held()[KEY])
    aside = store.set_aside(KEY)
    assert not store.has(KEY)
    assert (aside / weights).read() == b"short"


def test_a_flipped_bit_is_seen_where_it_is_read(place):
    store = Store(place)
    store.publish(KEY, kind="imp", tensors=TENSORS, metrics={})
    file = next(store.folder(KEY) / name for name in store.held()[KEY] if name.startswith("mask"))
    data = bytearray(file.read())
    data[-1] ^= 1
    file.write(bytes(data))
    store.verify(KEY, store.held()[KEY])  # sizes alone do not show it
    for look in (store.verify, lambda key: store.tensors(key, "mask")):
        with pytest.raises(BrokenArtefact, match="does not match its SHA-256"):
            look(KEY)


def test_of_many_that_want_a_lease_at_once_one_at_most_has_it(place):
    """Twelve at the same moment, ten times over: never two. Someone who comes alone always gets it."""
    store, inside, most = Store(place), [], []

    def want(start: threading.Barrier) -> None:
        start.wait()
        with Lease(store, KEY) as lease:
            if lease.held:
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.02)
                inside.pop()

    for _ in range(10):
        start = threading.Barrier(12)
        threads = [threading.Thread(target=want, args=(start,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Lease(store, KEY) as lease:
            assert lease.held
    assert set(most) <= {1}


def test_a_bucket_that_does_not_answer_for_a_while_loses_nothing():
    server = BucketServer("s3")
    try:
        store = Store(server.url("away"))
        store.publish(KEY, kind="imp", tensors=TENSORS, metrics={})
        server.pause()
        threading.Timer(4.0, server.resume).start()
        start = time.monotonic()
        store.publish(KEY, kind="imp", tensors=TENSORS, metrics={"second": True})
        assert time.monotonic() - start > 2.0
        assert store.verify(KEY) == {"second": True}
    finally:
        server.resume()
        server.stop()


def test_an_unreachable_bucket_is_named(monkeypatch):
    server = BucketServer("s3")
    store = Store(server.url("gone"))
    server.stop()
    monkeypatch.setattr("raylth.store.location.ATTEMPTS", 2)
    with pytest.raises(StorageUnreachable, match=r"^s3://bucket/gone/artefacts/ab/.*"):
        store.publish(KEY, kind="imp", tensors=TENSORS, metrics={})


def test_a_bucket_that_does_not_exist_is_reported_at_once(bucket_servers):
    start = time.monotonic()
    with pytest.raises(StorageUnreachable, match="no-such-bucket"):
        (locate(bucket_servers["s3"].url("x").replace("bucket/", "no-such-bucket/")) / "y").write(b"")
    assert time.monotonic() - start < 5.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/x", "ftp:// is unknown"),
        ("s3://", "names no bucket"),
        ("s3://key:secret@bucket/x", "credentials belong in the environment"),
        ("s3://bucket/x?reigon=here", "reigon"),
    ],
)
def test_an_address_that_cannot_be_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        locate(text)
    assert "\n" not in str(caught.value)


def test_a_path_is_a_path(tmp_path):
    assert isinstance(locate(tmp_path), DiskLocation)
    assert isinstance(locate("raylth-store"), DiskLocation)
    assert isinstance(locate("s3://bucket/x?region=us-east-1"), BucketLocation)


def test_a_list_that_may_have_empty_folders_goes_no_deeper_on_s3(place):
    root = locate(place)
    for name in ("runs/a/b/c", "runs/a/d", "runs/e/f", "runs/g", "runs/.hidden/h", "runs/i.tmp"):
        (root / name).write(b"")
    selected = []

    class Watched:
        def __init__(self, system):
            self.system = system

        def __getattr__(self, name):
            return getattr(self.system, name)

        def get_file_info(self, selector):
            selected.append(selector.recursive)
            return self.system.get_file_info(selector)

    runs = root / "runs"
    if hasattr(runs, "system"):
        runs.system = Watched(runs.system)
    assert runs.names(also_empty=True) == ["a", "e", "g"]
    assert (root / "none").names(also_empty=True) == []
    assert selected == {"s3": [False], "gcs": [True]}.get(getattr(getattr(runs, "system", None), "type_name", ""), [])
    (root / "runs" / "e").remove()
    assert runs.names() == ["a", "g"]
    assert {"a", "g"} <= set(runs.names(also_empty=True)) <= {"a", "e", "g"}
