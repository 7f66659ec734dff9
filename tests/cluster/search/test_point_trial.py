"""The trial of a search's point: what it reports, whatever the store holds of it."""

import itertools
import time

import pytest
from ray import tune

from raylth.cluster.address import Joining
from raylth.cluster.launch import joined
from raylth.cluster.nodes.preflight import versions
from raylth.cluster.search import point_trial as points
from raylth.cluster.search.point_trial import EPOCHS, Clock, PointTrial
from raylth.cluster.worker.payload import SearchShared
from raylth.config.overrides import changed
from raylth.stages import load_data, make_context, make_plan, run_stage
from raylth.store import Store
from tests.conftest import tiny_sweep

EVERY = 2
POINT = {"sparse.lr": 0.05}


@pytest.fixture(scope="module")
def ray():
    with joined(Joining("local")) as module:
        yield module


def config_of():
    """Two replicates, sparsities and rewind points: eight networks of an arm, of 7 and of 4 epochs."""
    return tiny_sweep(
        seeds={"replicates": 2}, dense={"epochs": 7}, match={"epochs": None}, sparse={"rewinds": [0, 3], "arms": ["permuted"]}
    )


def trial_of(ray, store, monkeypatch, is_stopped=lambda: False):
    """A trial as Tune sets it up, in this process."""
    monkeypatch.setattr(points, "Drain", lambda: is_stopped)
    config = config_of()
    data = load_data(config.data)
    plain = config.model_dump(mode="json")
    shared = SearchShared(str(store.root.path), [ray.put(data)], data.fingerprint(), versions(), config=plain, every=EVERY)
    return tune.with_parameters(PointTrial, shared=shared, arms=["permuted"])(config=POINT)


def reports_of(trial, most=1000):
    """What a trial reports until it is done."""
    found = []
    while not (found and found[-1].get("done")) and len(found) < most:
        found.append(trial.step())
    trial.cleanup()
    return found


def test_reports_grow_and_are_the_same_whatever_the_store_holds(ray, tmp_path, monkeypatch):
    """Nothing; all; a part, trained by a sweep that evaluates at other epochs."""
    store = Store(tmp_path / "new")
    found = reports_of(trial_of(ray, store, monkeypatch))
    clocks = [report[EPOCHS] for report in found]
    assert all(a < b for a, b in itertools.pairwise(clocks))
    lengths = [7, 7, 7, 7, 4, 4, 4, 4]
    starts = [sum(lengths[:n]) for n in range(8)]
    assert clocks == [start + epoch for start, length in zip(starts, lengths, strict=True)
                      for epoch in sorted({*range(EVERY, length, EVERY), length})]  # fmt: skip
    assert [report["finished"] for report in found] == [False] * (len(found) - 1) + [True]
    assert reports_of(trial_of(ray, store, monkeypatch)) == found, "all was in the store"

    plan = make_plan(changed(config_of(), POINT))
    ended = [store.metrics(stage.key)["test_accuracy"] for stage in plan.stages if stage.kind == "sparse"]
    for number, start in enumerate([*starts[1:], 44], start=1):
        (at_end,) = (report for report in found if report[EPOCHS] == start)
        assert at_end["accuracy"] == pytest.approx(sum(ended[:number]) / number)

    partly = Store(tmp_path / "partly")
    context = make_context(partly, load_data(config_of().data), evaluate_every=1)
    before = [stage for stage in plan.stages if stage.kind != "sparse"]
    for stage in [*before, *[stage for stage in plan.stages if stage.kind == "sparse"][:5:2]]:
        run_stage(stage, context)
    assert reports_of(trial_of(ray, partly, monkeypatch)) == found


def test_a_training_that_was_saved_half_way_reports_what_came_before(ray, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    whole = reports_of(trial_of(ray, Store(tmp_path / "other"), monkeypatch))
    clocks: list[Clock] = []
    with monkeypatch.context() as patched:
        patched.setattr(points, "Clock", lambda put: clocks.append(Clock(put)) or clocks[0])
        first = trial_of(ray, store, patched, lambda: bool(clocks) and clocks[0].reported >= 2 * EVERY)  # a machine's notice
        assert [first.step(), first.step()] == whole[:2]
        for _ in range(600):
            if store.states():
                break
            time.sleep(0.05)
        first.cleanup()
    assert store.states(), "saved in the midst of the first network"
    assert reports_of(trial_of(ray, store, monkeypatch)) == whole


def test_networks_come_in_one_order_at_every_point_of_a_space():
    """Of settings that change how long trainings are, and which there are: the n-th network is of the n-th cell."""
    config = tiny_sweep(
        seeds={"replicates": 2}, model={"widths": [0.25, 0.5]}, match={"epochs": None}, dense={"epochs": 6},
        sparse={"rewinds": [3, 0, 1], "arms": ["lth", "permuted"]},
    )  # fmt: skip
    space = {
        "dense.epochs": [4, 6, 9], "dense.lr": [0.01, 0.1], "sparse.lr": [0.01, 1.0], "imp.epochs_per_round": [1, 5],
        "match.method": ["activation", "weight"], "sparse.schedule": ["fresh", "rewound"], "imp.prune_fraction": [0.1, 0.3],
    }  # fmt: skip
    labels = ("replicate", "width", "sparsity", "rewind_epoch", "arm")
    orders = set()
    for values in itertools.product(*space.values()):
        plan = make_plan(changed(config, dict(zip(space, values, strict=True))))
        orders.add(tuple(tuple(stage.labels[name] for name in labels) for stage in plan.stages if stage.kind == "sparse"))
    assert len(orders) == 1
    one_each = ("sparse.rewinds", [0, 3]), ("sparse.sparsities", [0.3, 0.5])
    for setting, values in one_each:
        plans = [make_plan(changed(config, {setting: value})) for value in values]
        left = [name for name in labels if name not in ("rewind_epoch" if "rewinds" in setting else "sparsity")]
        orders = {
            tuple(tuple(stage.labels[name] for name in left) for stage in plan.stages if stage.kind == "sparse")
            for plan in plans
        }
        assert len(orders) == 1


def test_a_clock_of_networks_that_differ_in_length_counts_all_that_was_trained():
    told: list[dict] = []
    clock = Clock(told.append)
    clock.measure(10, 50.0)
    clock.measure(10, 51.0)  # once more, from the store
    clock.end(30, {"test_accuracy": 60.0, "model_sparsity": 0.5}, is_last=False)
    clock.measure(10, 40.0)
    clock.end(20, {"diverged": "loss is nan"}, is_last=True)
    assert [(report[EPOCHS], report["accuracy"], report["finished"]) for report in told] == [
        (10, 50.0, False), (30, 60.0, False), (40, 50.0, False), (50, 30.0, True),
    ]  # fmt: skip
    assert told[-1]["model_sparsity"] == 0.25
