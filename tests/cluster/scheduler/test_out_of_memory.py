"""Packs that run out of memory continue in halves, a tried training is evaluated, and a process that lost its GPU ends."""

import gc
import json
import os
import re
import subprocess
import sys
import weakref
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from raylth import stages as package
from raylth.cluster.scheduler.graph_searcher import GraphSearcher
from raylth.cluster.scheduler.packing import Packs
from raylth.cluster.slots import Slot
from raylth.cluster.worker import gpu
from raylth.cluster.worker.payload import Work
from raylth.cluster.worker.stage_trial import StageTrial
from raylth.config.resources import ResourcesConfig
from raylth.core.memory import DeviceLost
from raylth.stages import Graph, Preempted, load_data, make_context, make_plan
from raylth.store import Lease, Store
from tests.cluster.scheduler.test_shares import GPUS, TABLE, training
from tests.cluster.worker.test_checkpoint_cache import ends
from tests.conftest import tiny_sweep

NAMES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    MemoryError(),
]
ILLEGAL = "CUDA error: an illegal memory access was encountered"


class Device:
    """A GPU on which so many networks fit together; what it was asked to train, and whether it still works."""

    def __init__(self, fits):
        self.fits, self.packs, self.healthy = fits, [], True
        self.worker = None

    def out_of_memory(self):
        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def check(self, stages):
        """What happens when these stages are trained together: their leases are held, and memory may run out."""
        self.packs.append([stage.key for stage in stages])
        for stage in stages:
            with Lease(self.worker.store, stage.key) as lease:
                assert not lease.held, "the worker has it"
        if len(stages) > self.fits:
            raise self.out_of_memory()

    def run_together(self, stages, context):
        self.check(stages)
        return [self.publish(stage) for stage in stages]

    def run_stage(self, stage, context):
        self.check([stage])
        return self.publish(stage)

    def publish(self, stage):
        assert not self.worker.store.has(stage.key), "computed twice"
        self.worker.store.publish(stage.key, kind=stage.kind, tensors={}, metrics={})


@dataclass
class Bare:
    """What a worker knows of a stage's context, and no more."""

    engine: str = "eager"
    note: object = None


def worker_of(store, stages, **config):
    """A worker without a Ray."""
    worker = StageTrial.__new__(StageTrial)
    worker.shared = SimpleNamespace(
        stages={stage.key: stage.to_dict() for stage in stages}, errors=str(store.root / "errors"), imports=()
    )
    worker.store, worker.reader = store, SimpleNamespace(hand_over=lambda kind, key: None)
    worker.epochs_trained, worker.trace = SimpleNamespace(flush=lambda: None), lambda *told, **more: None
    worker.contexts, worker.is_asked_to_stop, worker.is_busy = {"cpu": Bare()}, False, False
    worker.steps_left, worker.drain = None, lambda: False
    worker.work = Work(**{"stages": [stage.key for stage in stages], "cpus": 1, "gpus": 1.0, "engines": ["eager"], **config})
    return worker


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run so many trainings as one pack on a device, or one after another; returns the worker's result."""

    def run(device, number, **config):
        stages = [training(f"{n:02}" + "0" * 62) for n in range(number)]
        device.worker = worker_of(Store(tmp_path), stages, **{"pack": True, **config})
        monkeypatch.setattr(package, "run_together", device.run_together)
        monkeypatch.setattr(package, "run_stage", device.run_stage)
        monkeypatch.setattr(gpu, "device", lambda share: "cpu")
        monkeypatch.setattr(gpu, "is_healthy", lambda: device.healthy, raising=False)
        return device.worker.step()

    return run


def outcomes(result):
    return [each["outcome"] for each in result["outcomes"]]


@pytest.mark.parametrize("fits", [3, 1])
def test_a_pack_that_runs_out_of_memory_continues_in_halves_then_alone(run, fits, tmp_path):
    device = Device(fits)
    found = run(device, 8)
    assert outcomes(found) == ["done"] * 8
    sizes = [len(pack) for pack in device.packs]
    assert sizes == ([8, 4, 2, 2, 4, 2, 2] if fits == 3 else [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1])
    assert (found["ran_out"], found["fits"]) == ((4, 2) if fits == 3 else (2, 1))
    assert not (Store(tmp_path).root / "leases").files(), "all are given back"


@pytest.mark.parametrize("error", NAMES, ids=str)
def test_halves_follow_out_of_memory_of_every_name(run, error):
    device = Device(2)
    device.out_of_memory = lambda: error
    assert outcomes(run(device, 4)) == ["done"] * 4
    alone = Device(0)
    alone.out_of_memory = lambda: error
    found = run(alone, 1, pack=False)["outcomes"][0]
    assert (found["outcome"], found["error"]) == ("out of memory", f"{type(error).__name__}: {error}")


def test_what_runs_out_of_memory_alone_is_reported_as_before(run):
    found = run(Device(0), 3)
    assert outcomes(found) == ["out of memory"] * 3
    assert (found["ran_out"], found["fits"]) == (2, 1)


def test_only_the_members_that_ran_out_are_run_again(run, monkeypatch):
    """As when memory ran out while the networks were made: the others were trained."""
    device, whole = Device(8), []

    def some(stages, context):
        device.check(stages)
        whole.append(len(stages))
        return [
            device.out_of_memory() if len(whole) == 1 and n < 3 else device.publish(each) for n, each in enumerate(stages)
        ]

    device.run_together = some
    found = run(device, 8)
    assert outcomes(found) == ["done"] * 8
    assert [len(pack) for pack in device.packs] == [8, 3]
    assert (found["ran_out"], found["fits"]) == (8, 5)


def test_a_pack_that_fits_or_fails_otherwise_says_nothing_of_memory(run):
    device = Device(8)
    assert "ran_out" not in run(device, 4)
    other = Device(0)
    other.out_of_memory = lambda: ValueError("out of memory, says the user's network")
    found = run(other, 3)
    assert outcomes(found) == ["failed"] * 3
    assert "ran_out" not in found


def test_memory_is_given_back_before_the_next_try(run):
    device, held = Device(2), []

    def hungry(stages, context):
        gone = [each() is None for each in held]
        assert all(gone), "what the failed pack had"
        if len(stages) > device.fits:
            tensor = torch.ones(1000)
            tensor.itself = tensor  # as networks have cycles
            held.append(weakref.ref(tensor))
        device.check(stages)
        return [device.publish(stage) for stage in stages]

    device.run_together = hungry
    gc.disable()
    try:
        assert outcomes(run(device, 8)) == ["done"] * 8
    finally:
        gc.enable()
    assert len(held) == 3


@pytest.mark.parametrize("when", ["in a half", "between"])
def test_a_worker_that_is_asked_to_stop_among_halves_stops(run, when, tmp_path):
    device = Device(2)

    def stopping(stages, context):
        if len(device.packs) == 2 and when == "in a half":
            device.worker.is_asked_to_stop = True
            raise Preempted("saved")
        found = Device.run_together(device, stages, context)
        device.worker.is_asked_to_stop = when == "between"
        return found

    device.run_together = stopping
    with pytest.raises(Preempted, match="saved" if when == "in a half" else "between two packs"):
        run(device, 4)
    store = Store(tmp_path)
    assert [store.has(stage) for stage in device.packs[0]] == [True, True, False, False]
    assert not (store.root / "leases").files()


@pytest.mark.parametrize("config", [{"pack": True}, {"pack": False}])
def test_a_process_that_cannot_use_its_gpu_any_more_ends(run, config, tmp_path):
    device = Device(0)
    device.out_of_memory, device.healthy = (lambda: RuntimeError(ILLEGAL)), False
    with pytest.raises(DeviceLost, match=f"RuntimeError: {ILLEGAL}"):
        run(device, 2, **config)
    assert len(device.packs) == 1, "no other stage meets it"
    traceback = (tmp_path / "errors" / f"{device.packs[0][0]}.txt").read_text()
    assert ILLEGAL in traceback
    device.healthy = True
    assert outcomes(run(device, 2, **config)) == ["failed"] * 2, "an error of its own"


def test_a_process_without_a_gpu_is_not_asked_for_it(run):
    device = Device(0)
    device.out_of_memory, device.healthy = (lambda: RuntimeError("no")), False
    assert outcomes(run(device, 2, gpus=0.0)) == ["failed"] * 2


def test_a_gpu_that_is_lost_while_a_pack_is_measured_ends_the_process(run, monkeypatch):
    class Context:
        @property
        def train(self):
            raise RuntimeError(ILLEGAL)

    device = Device(1)
    device.healthy = False
    monkeypatch.setattr(StageTrial, "_context", lambda self, device: Context())
    with pytest.raises(DeviceLost, match=ILLEGAL):
        run(device, 1, pack=False, measure="00" + "0" * 62)


def test_the_memory_of_a_tried_training_has_an_evaluation_in_it(tmp_path, monkeypatch):
    """A training evaluates after its last epoch only, in larger batches than it trains with."""
    plan, store = make_plan(tiny_sweep()), Store(tmp_path)
    stage = next(stage for stage in plan.stages if stage.kind == "dense")
    worker = worker_of(store, [stage], steps=2)
    worker.contexts["cpu"] = make_context(store, load_data(plan.config.data), stopping=worker._must_stop)
    monkeypatch.setattr(gpu, "device", lambda share: "cpu")
    batches = []

    def note(module, inputs, output):
        if isinstance(module, torch.nn.Linear) and not module.training:
            batches.append(len(inputs[0]))

    monkeypatch.setattr(gpu, "peak_bytes", lambda: max(batches, default=0))
    with torch.nn.modules.module.register_module_forward_hook(note):
        (found,) = worker.step()["outcomes"]
    assert (found["outcome"], found["peak_bytes"]) == ("tried", 200), "the whole test split, in one batch"
    assert store.load_state(stage.key) is None, "the engine that trains it may be another"


def test_a_tried_training_whose_evaluation_does_not_fit_has_run_out_of_memory(tmp_path, monkeypatch):
    plan, store = make_plan(tiny_sweep()), Store(tmp_path)
    stage = next(stage for stage in plan.stages if stage.kind == "dense")
    worker = worker_of(store, [stage], steps=2)
    worker.contexts["cpu"] = make_context(store, load_data(plan.config.data), stopping=worker._must_stop)
    monkeypatch.setattr(gpu, "device", lambda share: "cpu")
    error = [RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), ValueError("what only a test can think of")]

    def fails(*asked):
        raise error[0]

    monkeypatch.setattr("raylth.stages.probe.evaluate", fails)
    assert worker.step()["outcomes"][0]["outcome"] == "out of memory"
    error.pop(0)
    assert worker.step()["outcomes"][0]["outcome"] == "tried", "the stage itself will say what is wrong"


DONE = {"outcome": "done"}
ALL = 16


def searcher_of(tmp_path, pack, gpus="auto", **resources):
    """A searcher of trainings that are alike, with room for one pack; where packs are measured, eight go together."""
    shares = {kind: {"gpus": gpus} for kind in GPUS}
    config = ResourcesConfig.model_validate({**shares, "pack": pack, "retries": 0, "engine": "eager", **resources})
    stages = [training(f"s{number:02}") for number in range(ALL)]
    searcher = GraphSearcher(
        Graph(stages), Store(tmp_path), config, TABLE[:1], {"CPU": 1.0 if gpus == 0 else 64.0, "GPU": 1.0}
    )
    if gpus == "auto" and searcher.shares.must_be_tried(stages[0]):
        searcher.shares.learn(stages[0], 2**30)
    if pack == "auto" and searcher.packs.size(stages[0], Slot(1, 1.0)) is None:
        searcher.packs.learn(stages[0], Slot(1, 1.0), 8, {"eager": {1: 10.0, 8: 30.0}})
    return searcher


@pytest.mark.parametrize("pack", ["auto", 8])
def test_the_size_that_fits_is_remembered(tmp_path, pack):
    searcher = searcher_of(tmp_path, pack)
    first, second = searcher.suggest("t1"), searcher.suggest("t2")
    assert (len(first["stages"]), len(second["stages"])) == (8, 8)
    for trial in ("t1", "t2"):
        result = ends(*[DONE] * 7, {"outcome": "diverged", "error": "in epoch 1"}) | {"ran_out": 8, "fits": 4}
        searcher.on_trial_complete(trial, result)
    told = [note for note in searcher.notes if "pack" in note]
    assert told == ["a pack of 8 ran out of GPU memory; packs of at most 4 from now on"], "said once"
    assert searcher.graph.incidents == {"out of memory": 2}
    stage = training("another")
    assert searcher.packs.size(stage, Slot(1, 1.0)) == 4
    assert searcher.packs.ran_out(stage, Slot(1, 1.0), 16, 8) == [], "that is known"
    later = searcher_of(tmp_path, pack)
    assert len(later.suggest("t1")["stages"]) == (4 if pack == "auto" else 8), "what the file says holds again in a new run"
    files = [json.loads(text) for text in contents(later.store, "pack-")]
    assert [(file["size"], file.get("fits")) for file in files] == ([(8, 4)] if pack == "auto" else [])


def contents(store, prefix):
    folder = store.root / "measured"
    return [(folder / name).read() for name in folder.names() if name.startswith(prefix)]


def test_a_pack_of_one_is_a_training_alone(tmp_path):
    searcher = searcher_of(tmp_path, "auto")
    searcher.suggest("t1")
    searcher.on_trial_complete("t1", ends(*[DONE] * 8) | {"ran_out": 2, "fits": 1})
    found = searcher.suggest("t2")
    assert (found["pack"], found["gpus"] < 1) == (False, True)


def test_what_did_not_fit_in_a_part_of_a_gpu_is_not_written(tmp_path):
    packs = Packs(ResourcesConfig(), Store(tmp_path), "H200", {"GPU": 1.0})
    packs.learn(training("a"), Slot(1, 0.5), 8, {})
    assert packs.ran_out(training("a"), Slot(1, 0.5), 8, 4)
    assert packs.size(training("b"), Slot(1, 0.5)) == 4
    assert Packs(ResourcesConfig(), packs.store, "H200", {"GPU": 1.0}).size(training("b"), Slot(1, 1.0)) == 8


@pytest.mark.parametrize("pack", ["auto", 8])
def test_a_worker_that_is_killed_for_memory_halves_the_packs_and_blames_no_stage(tmp_path, pack):
    searcher = searcher_of(tmp_path, pack, gpus=0 if pack == 8 else "auto")
    sizes = []
    for number in range(3):
        sizes.append(len(searcher.suggest(f"t{number}")["stages"]))
        searcher.causes[f"t{number}"] = "out of memory", "OutOfMemoryError: killed due to the node running low on memory"
        searcher.on_trial_complete(f"t{number}", error=True)
        assert not searcher.times, "no stage is to blame"
        assert set(searcher.graph.states.values()) == {"waiting"}
    assert sizes == [8, 4, 2]
    assert searcher.graph.incidents == {"out of memory": 3}
    assert searcher.notes[0] == "a pack of 8 ran out of memory; packs of at most 4 from now on"
    assert searcher_of(tmp_path, "auto").packs.size(training("x"), Slot(1, 1.0)) == 8, "others may have filled the machine"
    alone = searcher.suggest("last")
    assert alone["pack"] is False
    searcher.causes["last"] = "out of memory", "OutOfMemoryError: killed"
    searcher.on_trial_complete("last", error=True)
    assert len(searcher.times) == 1, "by itself it counts"


def test_a_crash_of_a_pack_counts_for_no_stage_until_one_is_by_itself(tmp_path):
    """The one that crashes is found in as many crashes as there are halvings, and with `retries: 0` no other fails."""
    searcher, crashes = searcher_of(tmp_path, 8, gpus=0), 0
    for number in range(100):
        found = searcher.suggest(f"t{number}")
        if found == "FINISHED":
            break
        if "s05" in found["stages"]:
            crashes += 1
            searcher.causes[f"t{number}"] = "crashed", f"DeviceLost: this process can no longer use its GPU after {ILLEGAL}"
            searcher.on_trial_complete(f"t{number}", error=True)
        else:
            searcher.on_trial_complete(f"t{number}", ends(*[DONE] * len(found["stages"])))
    assert crashes == 4
    assert searcher.graph.incidents == {"crashed": 4}
    states = [stage for stage, state in searcher.graph.states.items() if state == "done"]
    assert len(states) == ALL - 1
    (line,) = searcher.graph.errors.values()
    assert line.startswith("its worker process died 1 times: DeviceLost: ")
    assert ILLEGAL in line
    assert "a pack of 8: its worker process died; restarted in packs of at most 4: DeviceLost" in searcher.notes[0]


def test_a_pack_of_which_all_was_published_when_it_crashed_is_done(tmp_path):
    searcher = searcher_of(tmp_path, 8, gpus=0)
    for key in searcher.suggest("t1")["stages"]:
        searcher.store.publish(key, kind="sparse", tensors={}, metrics={})
    searcher.on_trial_complete("t1", error=True)
    assert sum(state == "done" for state in searcher.graph.states.values()) == 8
    assert not searcher.packs.suspects


def test_the_cuda_error_of_a_lost_device_is_a_crash_whatever_it_says():
    from raylth.cluster.failures import cause_of

    assert cause_of(DeviceLost("... after RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED")) == "crashed"
    for error in NAMES:
        assert cause_of(error) == "out of memory"


def test_a_full_gpu_is_healthy(monkeypatch):
    error = [RuntimeError("CUDA error: out of memory")]

    def fails(*asked):
        raise error[0]

    assert gpu.is_healthy(), "no GPU is in use"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert gpu.is_healthy()
    error[0] = torch.AcceleratorError(ILLEGAL)
    assert not gpu.is_healthy()


SWEEP = """
import json, sys
from ray.cluster_utils import Cluster
from raylth.cluster import launch
from raylth.cluster.address import Joining
from raylth.cluster.nodes.budget_meter import Meter
from raylth.config.sweep import SweepConfig
from raylth.stages import load_data, make_plan, scan
from raylth.store import Store

launch.gpu_table = lambda: [("fake", 8 * 2**30)]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
plan, store = make_plan(SweepConfig.model_validate_json(sys.argv[3])), Store(sys.argv[1])
graph, told = scan(plan, store), []
launch.run_on_ray(
    plan, graph, store, load_data(plan.config.data), errors=store.root / "errors",
    meter=Meter(None, None, store.root / "used.json"), joining=Joining(cluster.address),
    watch=lambda graph, epochs, notes: told.extend(notes), imports=(sys.argv[2],),
)
cluster.shutdown()
print(json.dumps({"states": graph.states, "errors": graph.errors, "incidents": graph.incidents, "notes": told}))
"""


def sweep(config, storage, module, **environment):
    """Run a sweep whose workers import a module in place of a GPU; returns how it ended."""
    ran = subprocess.run(
        [sys.executable, "-c", SWEEP, str(storage), module, config.model_dump_json(exclude_unset=True)],
        env=os.environ | {"RAY_AUTH_MODE": "disabled", **environment},  # as for any cluster of cluster_utils
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_sweep_whose_packs_do_not_fit_in_memory_is_finished_in_smaller_ones(tmp_path):
    resources = {**{kind: {"gpus": 1} for kind in ("dense", "imp", "sparse")}, "pack": 4, "engine": "eager"}
    config = tiny_sweep(resources=resources, sparse={"arms": ["lth", "naive", "random"], "sparsities": [0.5]})
    found = sweep(config, tmp_path, "tests.scarce_memory")
    assert (set(found["states"].values()), found["errors"]) == ({"done"}, {})
    (note,) = found["notes"]
    assert re.fullmatch(r"a pack of [34] ran out of GPU memory; packs of at most 2 from now on", note)
    assert set(found["incidents"]) == {"out of memory"}, "also of a pack that was formed meanwhile"
    store = Store(tmp_path)
    packs = [store.metrics(stage.key)["pack"] for stage in make_plan(config).stages if stage.kind == "sparse"]
    assert max(packs) == 2


def test_after_a_cuda_error_that_stays_the_next_stage_runs_in_another_process(tmp_path):
    resources = {kind: {"gpus": 1} for kind in ("dense", "imp", "sparse", "match", "mask")}
    resources |= {"pack": "off", "retries": 1, "engine": "eager"}
    config = tiny_sweep(
        resources=resources, sparse={"arms": ["lth", "permuted", "random"], "rewinds": [0], "sparsities": [0.5]}
    )
    plan, store, file = make_plan(config), Store(tmp_path / "store"), tmp_path / "lost"
    poisonous = next(stage.key for stage in plan.stages if stage.kind == "sparse")
    environment = {
        "RAYLTH_TEST_POISONOUS": poisonous,
        "RAYLTH_TEST_LOST": str(file),
        "RAYLTH_STUB_SECONDS": '{"sparse": 0.5}',
    }
    found = sweep(config, tmp_path / "store", "tests.lost_gpu", **environment)
    assert {key for key, state in found["states"].items() if state != "done"} == {poisonous}
    (line,) = found["errors"].values()
    assert line.startswith("its worker process died 2 times: DeviceLost: this process can no longer use its GPU after ")
    assert line.endswith("RuntimeError: CUDA error: an illegal memory access was encountered")
    assert found["incidents"] == {"crashed": 2}
    lost = {each["pid"]: each["at"] for each in map(json.loads, file.read_text().splitlines())}
    assert len(lost) == 2, "each time another process"
    others = [store.metrics(key) for key in found["states"] if key != poisonous]
    assert any(metrics["started"] > min(lost.values()) for metrics in others), "some ran afterwards"
    assert not [metrics for metrics in others if metrics["started"] > lost.get(metrics["pid"], float("inf"))]
