"""What checkpoints cost in memory: the object store's copy is shared, and the actors keep to their budget."""

import gc
import time

import numpy as np
import psutil
import pytest
import ray

from raylth.cluster.worker.checkpoint_cache import CheckpointReader, start_checkpoint_actors
from raylth.stages.arrays import to_torch
from raylth.store import Store

KEYS = [f"{number:064x}" for number in range(6)]
MB = 10**6
READERS = 4  # each imports torch


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        address="local", num_cpus=2, object_store_memory=300 * MB, include_dashboard=False, log_to_driver=False,
        _system_config={"local_fs_capacity_threshold": 1e-6},  # Ray takes the disk for full and spills nothing
    )  # fmt: skip
    yield
    ray.shutdown()


def publish(store: Store, key: str, megabytes: int) -> None:
    arrays = {"w": np.random.default_rng(0).random(megabytes * MB // 8)}
    store.publish(key, kind="dense", tensors={"weights": arrays}, metrics={})


@ray.remote(num_cpus=0)
class Reader:
    """A worker that maps a checkpoint, then copies it to its device, the CPU."""

    def __init__(self, actors, root):
        self.reader = CheckpointReader(actors, Store(root))
        to_torch({"w": np.zeros(8)}, "cpu")  # torch is there from now on

    def private(self):
        gc.collect()
        return psutil.Process().memory_full_info().uss

    def map(self, key):
        self.view = self.reader.load(key, "weights")
        return float(self.view["w"].sum())

    def copy(self, key):
        self.copied = to_torch(self.reader.load(key, "weights"), "cpu")


def total() -> int:
    """The memory of this process and all that Ray started, shared pages counted once."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes)


def test_readers_of_a_checkpoint_share_one_copy_and_make_one_each_on_their_device(cluster, tmp_path):
    store = Store(tmp_path)
    publish(store, KEYS[0], 100)
    actors = start_checkpoint_actors(str(store.root), 1)
    readers = [Reader.remote(actors, str(store.root)) for _ in range(READERS)]
    private = ray.get([reader.private.remote() for reader in readers])
    CheckpointReader(actors, store).hand_over("dense", KEYS[0])
    before = total()
    sums = ray.get([reader.map.remote(KEYS[0]) for reader in readers])
    assert len(set(sums)) == 1
    time.sleep(1.0)  # what travelled to the checkpoint actor is given back
    assert total() - before < 150 * MB
    mapped = ray.get([reader.private.remote() for reader in readers])
    assert max(after - start for start, after in zip(private, mapped, strict=True)) < 10 * MB, "views, no copies"
    ray.get([reader.copy.remote(KEYS[0]) for reader in readers])
    copied = ray.get([reader.private.remote() for reader in readers])
    for start, after in zip(private, copied, strict=True):
        assert 95 * MB < after - start < 110 * MB, "one copy on the device"


def test_an_actor_evicts_the_least_recently_used_and_reads_it_again(cluster, tmp_path):
    store = Store(tmp_path)
    for key in KEYS:
        publish(store, key, 10)
    (actor,) = start_checkpoint_actors(str(store.root), 1, 35 * MB)
    reader = CheckpointReader([actor], store)

    def held():
        return [key for key, _ in ray.get(actor.__ray_call__.remote(lambda self: list(self.refs)))]

    views = [reader.load(key, "weights") for key in KEYS[:3]]
    reader.load(KEYS[0], "weights")
    reader.load(KEYS[3], "weights")
    assert held() == [KEYS[2], KEYS[0], KEYS[3]], "the second was not asked for longest"
    expected = store.tensors(KEYS[1], "weights")["w"]
    np.testing.assert_array_equal(views[1]["w"], expected), "who has it keeps it"
    np.testing.assert_array_equal(reader.load(KEYS[1], "weights")["w"], expected)
    assert held() == [KEYS[0], KEYS[3], KEYS[1]]


def test_more_than_the_object_store_holds_while_the_disk_is_full_is_read_from_the_store(cluster, tmp_path):
    """450 MB of checkpoints through an object store of 300 MB, with a budget that does not help."""
    store = Store(tmp_path)
    for key in KEYS:
        publish(store, key, 75)
    reader = CheckpointReader(start_checkpoint_actors(str(store.root), 1, 10_000 * MB), store, patience=5.0)
    for key in [*KEYS, *KEYS]:
        assert reader.load(key, "weights")["w"].nbytes == 75 * MB
    views = [reader.load(key, "weights") for key in KEYS[:3]]  # what is in use cannot be let go
    for key in KEYS:
        reader.hand_over("dense", key)  # a published stage does not fail because nobody can hold it
    assert len(views) == 3


def test_what_the_object_store_does_not_deliver_comes_from_the_store(cluster, tmp_path):
    """As when a spilled checkpoint finds no room to come back."""
    store = Store(tmp_path)
    publish(store, KEYS[0], 1)

    @ray.remote(num_cpus=0)
    def never():
        time.sleep(1000)

    @ray.remote(num_cpus=0)
    class Actor:
        def fetch(self, key, name):
            return [never.remote()]

    reader = CheckpointReader([Actor.remote()], store, patience=1.0)
    start = time.monotonic()
    np.testing.assert_array_equal(reader.load(KEYS[0], "weights")["w"], store.tensors(KEYS[0], "weights")["w"])
    assert time.monotonic() - start < 30
