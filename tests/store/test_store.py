import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from raylth.store import (
    BrokenArtefact,
    NewerStore,
    Store,
    canonical_json,
    decode_tensors,
    encode_tensors,
    fingerprint,
)

KEY = "ab" + "0" * 62
TENSORS = {
    "weights": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(3, dtype=np.int64)},
    "mask": {"w": np.array([[True, False, True], [False, False, True]])},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.publish(KEY, kind="imp", tensors=TENSORS, metrics={"accuracy": 0.1, "curve": [1, 2]})
    return store


def files_of(store: Store) -> list[Path]:
    return sorted(path for path in store.folder(KEY).path.iterdir())


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (4, 4, 4)])
@pytest.mark.parametrize("dtype", [np.bool_, np.float32, np.float64, np.int64, np.uint8])
def test_tensors_are_read_as_they_were_written(shape, dtype):
    array = (np.random.default_rng(0).random(shape) * 10 > 5).astype(dtype)
    found = decode_tensors(encode_tensors({"x": array, "y": array[..., None]}))
    assert found["x"].dtype == dtype
    assert found["x"].shape == shape
    np.testing.assert_array_equal(found["x"], array)
    np.testing.assert_array_equal(found["y"], array[..., None])


def test_a_mask_takes_one_bit_per_weight():
    assert len(encode_tensors({"m": np.ones(80_000, dtype=bool)})) < 10_000 + 500


def test_decoding_a_buffer_copies_nothing():
    buffer = np.frombuffer(encode_tensors({"w": np.ones(1000, dtype=np.float32)}), dtype=np.uint8)
    view = decode_tensors(buffer)["w"]
    assert np.shares_memory(view, buffer)
    assert not view.flags.writeable


@pytest.mark.parametrize("damage", [b"", b"\x00" * 4, b"\xff" * 64])
def test_what_is_not_safetensors_is_refused(damage):
    with pytest.raises(ValueError, match="not a safetensors buffer"):
        decode_tensors(damage)


def test_publish_and_read_back(store):
    assert store.has(KEY)
    store.verify(KEY)
    assert store.metrics(KEY) == {"accuracy": 0.1, "curve": [1, 2]}
    np.testing.assert_array_equal(store.tensors(KEY, "mask")["w"], TENSORS["mask"]["w"])
    assert store.tensors(KEY, "weights")["count"].shape == ()
    with pytest.raises(KeyError, match="weights, mask"):
        store.read(KEY, "permutation")


def test_a_moved_store_still_works(store, tmp_path):
    shutil.move(store.root.path, tmp_path / "elsewhere")
    Store(tmp_path / "elsewhere").verify(KEY)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_each_damage_to_each_file_is_named_and_set_aside(store, index, damage):
    path = files_of(store)[index]
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    if damage == "remove" and path.name == "MANIFEST.json":
        assert not store.has(KEY)
    with pytest.raises(BrokenArtefact, match=path.name.split(".")[0]):
        store.verify(KEY)
    before = {p.name: p.read_bytes() for p in files_of(store)}
    aside = store.set_aside(KEY)
    assert {p.name: p.read_bytes() for p in aside.path.iterdir()} == before, "setting aside must lose nothing"
    assert not store.has(KEY)
    store.publish(KEY, kind="imp", tensors=TENSORS, metrics={})
    store.verify(KEY)
    assert store.set_aside(KEY) != aside


def test_a_newer_store_is_refused_with_its_version(store):
    path = store.folder(KEY).path / "MANIFEST.json"
    body = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"} | {"schema": 99}
    path.write_text(json.dumps({"sha256": fingerprint(body), **body}))
    with pytest.raises(NewerStore, match="schema 99"):
        store.metrics(KEY)


def publish_for_ever(root: str) -> None:
    tensors = {"weights": {"w": np.random.default_rng(os.getpid()).random(200_000)}}
    while True:
        Store(root).publish(KEY, kind="dense", tensors=tensors, metrics={"pid": os.getpid()})


def test_killed_in_the_middle_of_publishing_at_any_moment(tmp_path):
    """Kill a process that publishes without a pause, at ten different moments: what is visible is always whole."""
    context = multiprocessing.get_context("spawn")
    seen = 0
    for delay in np.linspace(0.0, 0.4, 10):
        left_over = set(tmp_path.glob("**/*.tmp"))
        process = context.Process(target=publish_for_ever, args=(str(tmp_path),))
        process.start()
        deadline = time.monotonic() + 30
        while set(tmp_path.glob("**/*.tmp")) <= left_over and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if Store(tmp_path).has(KEY):
            Store(tmp_path).verify(KEY)
            seen += 1
    assert seen > 0, "the process never published, so nothing was tested"


def test_an_error_in_the_middle_leaves_nothing_visible(tmp_path, monkeypatch):
    """The disk is full before the manifest: the artefact does not exist, and the next try publishes it."""
    real, calls = os.replace, []

    def full_at_the_third(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full_at_the_third)
    store = Store(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        store.publish(KEY, kind="imp", tensors=TENSORS, metrics={})
    assert not store.has(KEY)
    assert not list(tmp_path.glob("**/*.tmp"))
    store.publish(KEY, kind="imp", tensors=TENSORS, metrics={})
    store.verify(KEY)


def test_canonical_json():
    assert canonical_json({"b": 1.0, "a": [True, None, "é"]}) == '{"a":[true,null,"\\u00e9"],"b":1.0}'
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


def test_what_systems_and_people_leave_in_a_store_is_no_part_of_it(tmp_path):
    """Finder's, Windows', an NFS server's snapshots, and a file that somebody put there."""
    store = Store(tmp_path)
    store.publish(KEY, kind="dense", tensors={"w": {"a": np.zeros(3, np.float32)}}, metrics={})
    store.save_state(KEY, {"w": {"a": np.zeros(3, np.float32)}}, {})
    before = store.held(), store.states(), store.root.names()
    for folder in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        for name in (".DS_Store", "._w.safetensors", ".nfs0001", "x.tmp"):
            (folder / name).write_bytes(b"junk")
    (tmp_path / "artefacts" / "Thumbs.db").write_bytes(b"junk")
    (tmp_path / "states" / "desktop.ini").write_bytes(b"junk")
    snapshot = tmp_path / "artefacts" / ".snapshot" / KEY
    snapshot.mkdir(parents=True)
    (snapshot / "MANIFEST.json").write_bytes(b"{}")
    assert (store.held(), store.states(), store.root.names()) == before
    assert (store.root / "MANIFEST" / "x").exists() is False
    with pytest.raises(FileNotFoundError):
        (store.root / ".DS_Store" / "status.json").read()
    assert store.verify(KEY, store.held()[KEY]) == {}
