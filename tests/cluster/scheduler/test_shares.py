"""`gpus: auto`, with tables of GPUs that this machine does not have."""

import time
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher

from raylth.cluster.failures import CRASHED
from raylth.cluster.scheduler.graph_searcher import GraphSearcher
from raylth.cluster.scheduler.packing import Packs
from raylth.cluster.slots import MARGIN, Shares, Slot, room, share_of_gpu
from raylth.cluster.worker.payload import Work
from raylth.config.resources import ResourcesConfig
from raylth.core.training.recipe import Recipe
from raylth.stages import Graph, Stage, kind_of
from raylth.stages.settings import Amount, DataSettings, MatchSettings, NetworkSettings, TransformSettings
from raylth.store import Store
from tests.cluster.worker.test_checkpoint_cache import ends

GIB = 2**30
ALL_ENGINES = ["eager", "graph", "compiled", "stacked"]
TABLE = [("H200", 140 * GIB), ("A10", 24 * GIB)]
GPUS = {kind: {"gpus": "auto"} for kind in ("dense", "imp", "sparse", "match")}
AUTO = ResourcesConfig.model_validate({**GPUS, "pack": "off", "engine": "eager"})


NETWORK = {"name": "resnet20", "init": "own", "num_classes": 10, "in_shape": (3, 32, 32)}
DATA = DataSettings(name="cifar10", layout=None, normalisation="own", num_train=9)

OF_A_KIND = {
    "dense": {"init_seed": 0},
    "imp": {"amount": Amount(fraction=0.2), "prune_shortcuts": False},
    "sparse": {"mask_transform": TransformSettings(name="none")},
}


def training(key, kind="sparse", width=1.0, batch=128, **parents):
    shared = {"model": NetworkSettings(**NETWORK, width=width), "data": DATA}
    recipe = Recipe(epochs=3, lr=0.1, batch_size=batch)
    settings = kind_of(kind).settings(**shared, augment="none", recipe=recipe, seed=0, **OF_A_KIND[kind])
    return Stage(kind, key, settings, parents, {}, epochs=3)


def a_match(key):
    settings = MatchSettings(model=NetworkSettings(**NETWORK, width=1.0), data=DATA, method="identity", own={})
    return Stage("match", key, settings, {}, {})


def test_a_pack_is_measured_once_and_has_a_gpu_to_itself(tmp_path):
    """Tried for its memory, measured for its pack, then packs with a whole GPU; two rounds are dealt out evenly."""
    stages = [training(f"s{number}") for number in range(10)]
    resources = ResourcesConfig.model_validate({**GPUS, "pack": "auto"})
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), resources, TABLE, {"CPU": 8.0, "GPU": 1.0})
    done = {"error": None, "broken": None, "computed": True, "seconds": 1.0, "peak_bytes": None}
    tried = searcher.suggest("t1")
    assert (tried["stages"], tried["gpus"], tried["steps"], tried["measure"]) == (["s0"], 1.0, 5, None)
    searcher.on_trial_complete("t1", {"outcomes": [{**done, "outcome": "tried", "computed": False, "peak_bytes": GIB}]})
    measured = searcher.suggest("t2")
    assert (measured["gpus"], measured["measure"], measured["pack"]) == (1.0, "s0", False)
    beside = searcher.suggest("t3")
    assert (beside["gpus"] < 1.0, beside["measure"]) == (True, None), "one measures, the others run alone"
    assert (measured["engines"], measured["sizes"], beside["engine"]) == (ALL_ENGINES, None, "eager")
    found = {"pack_size": 6, "pack_rates": {"eager": {1: 10.0, 6: 20.0}, "graph": {1: 20.0, 6: 30.0}}, "pack_engine": "graph"}
    searcher.on_trial_complete("t2", {"outcomes": [{**done, "outcome": "tried", "computed": False, **found}]})
    searcher.on_trial_complete("t3", {"outcomes": [{**done, "outcome": "done"}]})
    first, second = searcher.suggest("t4"), searcher.suggest("t5")
    assert [len(pack["stages"]) for pack in (first, second)] == [5, 4], "with the one by which was measured"
    assert {pack["gpus"] for pack in (first, second)} == {1.0}
    assert {pack["engine"] for pack in (first, second)} == {"graph"}
    later = Packs(resources, searcher.store, "A10", {})
    assert (later.size(stages[0], Slot(1, 1.0)), later.engine(stages[0], Slot(1, 1.0))) == (6, "graph"), "in the store"


def test_an_engine_is_measured_on_a_gpu_for_the_size_that_the_file_says(tmp_path):
    """Not where the file names the engine, nor on a CPU, where it is the plain loop."""
    stages = [training(f"s{number}") for number in range(3)]
    done = {"error": None, "broken": None, "computed": True, "seconds": 1.0, "peak_bytes": None}

    def searcher_of(folder, **resources):
        config = ResourcesConfig.model_validate({"sparse": {"gpus": 1}, **resources})
        return GraphSearcher(Graph(stages), Store(tmp_path / folder), config, TABLE, {"CPU": 8.0, "GPU": 1.0})

    for pack, size in (("off", 1), (3, 3)):
        searcher = searcher_of(f"{pack}", pack=pack)
        trial = searcher.suggest("t1")
        assert (trial["measure"], trial["sizes"], trial["engines"]) == ("s0", [size], ALL_ENGINES)
        found = {"pack_size": size, "pack_rates": {"compiled": {size: 1.0}}, "pack_engine": "compiled"}
        notes = ["engine 'stacked' cannot be used: a convolution with groups"]
        result = {"outcomes": [{**done, "outcome": "tried", "computed": False, **found}], "notes": notes}
        searcher.on_trial_complete("t1", result)
        trial = searcher.suggest("t2")
        assert (len(trial["stages"]), trial["measure"], trial["engine"]) == (size, None, "compiled")
        searcher.on_trial_complete("t2", {"outcomes": [{**done, "outcome": "done"}] * size, "notes": notes})
        assert searcher.notes == notes, "said once, whoever found it"
    named = searcher_of("named", pack="off", engine="graph").suggest("t1")
    assert (named["measure"], named["engine"]) == (None, "graph")
    on_cpu = searcher_of("cpu", pack="off", sparse={"gpus": 0}).suggest("t1")
    assert (on_cpu["measure"], on_cpu["engine"]) == (None, "eager")
    measured = searcher_of("both", engine="graph").suggest("t1")
    assert (measured["measure"], measured["sizes"], measured["engines"]) == ("s0", None, ["graph"])
    assert searcher_of("both cpu", sparse={"gpus": 0}).suggest("t1")["engines"] == ["eager"], "and is not looked for there"


def test_measuring_that_ends_its_process_is_done_again_without_our_own_kernels(tmp_path):
    resources = ResourcesConfig.model_validate({"sparse": {"gpus": 1}})
    stages = [training(f"s{number}") for number in range(3)]
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), resources, TABLE, {"CPU": 8.0, "GPU": 1.0})
    for number, engines in enumerate([ALL_ENGINES, ["eager", "graph"]]):
        trial = searcher.suggest(f"t{number}")
        assert (trial["measure"], trial["engines"]) == ("s0", engines)
        searcher.causes[f"t{number}"] = CRASHED, "DeviceLost: an illegal memory access"
        searcher.on_trial_complete(f"t{number}", error=True)
    trial = searcher.suggest("t2")
    assert (trial["measure"], trial["engine"], trial["pack"]) == (None, "eager", False), "and then not any more"


def test_as_many_trials_wait_as_machines_that_may_come_have_room_for_and_one_more(tmp_path):
    """Workers start side by side, and an autoscaler hears of all of them; what is beyond stays free to be dealt out later."""
    resources = ResourcesConfig.model_validate({"sparse": {"gpus": "1/3"}, "pack": "off", "engine": "eager"})
    stages = [*(training(f"s{number}") for number in range(20)), training("team", "dense"), training("other", "dense")]
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), resources, TABLE, {"CPU": 40.0, "GPU": 2.0})
    found = [searcher.suggest(f"t{number}") for number in range(10)]
    assert [each is not None for each in found].index(False) == 7, "six thirds of two GPUs, and one more"
    done = {"error": None, "broken": None, "computed": True, "seconds": 1.0, "peak_bytes": None, "outcome": "done"}
    searcher.on_trial_complete("t0", {"outcomes": [done]})
    assert searcher.suggest("u0") is not None
    assert searcher.suggest("u1") is None
    searcher.see({"CPU": 60.0, "GPU": 3.0})
    assert [searcher.suggest(f"v{number}") is not None for number in range(4)] == [True, True, True, False]
    searcher.see({"CPU": 0.0, "GPU": 0.0})
    assert searcher.machines == {"CPU": 60.0, "GPU": 3.0}, "those that died may come again"


def test_where_no_machine_can_come_a_trial_is_chosen_when_there_is_room_for_it(tmp_path):
    """What becomes ready while all machines are busy goes first when one is free, if others wait for it."""
    stages = [training("trunk", "imp"), *(training(f"s{number}") for number in range(3)), training("next", "imp", of="trunk")]
    order = sorted(stages, key=lambda stage: stage.kind)
    resources = ResourcesConfig.model_validate({"sparse": {"cpus": 2}, "pack": "off"})
    searcher = GraphSearcher(Graph(order), Store(tmp_path), resources, [], {"CPU": 3.0, "GPU": 0.0}, may_grow=False)
    assert [searcher.suggest(f"t{number}")["stages"] for number in range(2)] == [["trunk"], ["s0"]]
    assert searcher.suggest("t2") is None, "three CPUs are given out"
    done = {"error": None, "broken": None, "computed": True, "seconds": 1.0, "peak_bytes": None, "outcome": "done"}
    searcher.on_trial_complete("t0", {"outcomes": [done]})
    assert searcher.suggest("t3")["stages"] == ["next"]
    searcher.on_trial_complete("t3", {"outcomes": [done]})
    assert searcher.suggest("t4") is None, "one CPU is free, and the next takes two"
    searcher.on_trial_complete("t1", {"outcomes": [done]})
    assert searcher.suggest("t5")["stages"] == ["s1"]


def test_packs_are_measured_in_the_arithmetic_of_most_epochs(tmp_path):
    packs = Packs(ResourcesConfig(), Store(tmp_path), "none", {"CPU": 2.0})

    def stage(key, kind, epochs, **recipe):
        found = training(key, kind)
        return replace(found, epochs=epochs, settings=replace(found.settings, recipe=Recipe(epochs=epochs, lr=0.1, **recipe)))

    dense, round_ = stage("d", "dense", 40), stage("i", "imp", 50)
    arms = [stage(f"s{number}", "sparse", 40, precision="bf16") for number in range(3)]
    assert packs.example([dense, round_, *arms]) == arms[0]
    assert packs.example([dense, round_, arms[0]]) == dense
    wide = replace(arms[0], key="w", settings=training("w", width=4.0).settings, epochs=999)
    cores = ResourcesConfig.model_validate({"sparse": {"cpus": 2}})
    for resources, expected in ((ResourcesConfig(), "s0"), (cores, "d")):
        searcher = GraphSearcher(Graph([dense, wide, *arms]), Store(tmp_path), resources, [], {"CPU": 4.0, "GPU": 0.0})
        assert searcher.suggest("t")["measure"] == expected, "of the same network and the same share"


@pytest.mark.parametrize(
    ("cause", "measured"), [("preempted", None), ("not started", None), ("crashed", 1), ("out of memory", 1)]
)
def test_a_worker_that_dies_while_it_measures_costs_no_stage_anything(tmp_path, cause, measured):
    stages = [training(f"s{number}") for number in range(3)]
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), ResourcesConfig(retries=0), [], {"CPU": 1.0, "GPU": 0.0})
    assert searcher.suggest("t0")["measure"] == "s0"
    searcher.causes["t0"] = cause, "no reason"
    searcher.on_trial_complete("t0", error=True)
    assert searcher.graph.states["s0"] == "waiting"
    assert not searcher.times
    again = searcher.suggest("t1")
    assert (again["stages"], again["measure"]) == (["s0"], None if measured else "s0")
    assert not Store(tmp_path).root.files(), "nothing was measured"


def test_a_team_that_waits_keeps_nothing_else_from_running(tmp_path):
    resources = ResourcesConfig.model_validate({"imp": {"gpus": 2, "workers": 2}})
    stages = [training("a", "imp"), training("b", "imp"), a_match("m")]
    machines = {"CPU": 4.0, "GPU": 2.0}
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), resources, TABLE, machines, may_grow=False)
    assert [searcher.suggest(f"t{number}")["stages"] for number in range(2)] == [["a"], ["m"]]
    assert searcher.suggest("t2") is None


@given(st.integers(1, 12), st.integers(1, 32), st.integers(1, 300))
def test_trainings_are_dealt_out_evenly(workers, size, number):
    """Workers that take in turn while none has ended get as much as one another, to one, in each round."""
    packs = Packs(ResourcesConfig(), Store("unused"), "none", {"CPU": float(workers)})
    left, taken = number, []
    while left:
        running = sum(taken[len(taken) // workers * workers :])  # of this round; those before it have ended
        taken.append(packs.share(Slot(1, 0.0), size, left, left + running))
        left -= taken[-1]
        assert 1 <= taken[-1] <= size
    rounds = [taken[start : start + workers] for start in range(0, len(taken), workers)]
    assert len(rounds) <= -(-number // (workers * size)) + 1

    if number <= workers * size:
        assert max(taken) <= -(-number // workers), "one round, nobody takes more than a fair part"


def test_the_last_round_is_dealt_out_by_what_the_others_still_have():
    """Eighteen are left when another worker is half through such a pack: two thirds here, and one third there later."""
    packs = Packs(ResourcesConfig(), Store("unused"), "none", {"CPU": 2.0})
    assert packs.share(Slot(1, 0.0), 32, 18, 18 + 6.0) == 12
    assert packs.share(Slot(1, 0.0), 32, 6, 6 + 12.0) == 6, "all that is left"
    assert packs.share(Slot(1, 0.0), 32, 36, 36 + 72.0) == 18, "not the last round: equal parts, not 27 and 9"


@given(st.integers(1, 200 * GIB), st.integers(GIB, 200 * GIB))
def test_as_many_as_fit_share_a_gpu(taken, total):
    share = share_of_gpu(taken, total)
    number = round(1 / share)
    assert share == 1 / number
    assert number == 1 or number * taken * MARGIN <= total
    assert number == 32 or (number + 1) * taken * MARGIN > total - number - 1


@pytest.mark.parametrize("gpus", range(1, 9))
@pytest.mark.parametrize("number", range(1, 65))
def test_n_shares_of_1_nth_fit_on_a_gpu(number, gpus):
    """1.0 // 0.1 is 9 for floats; what is counted are workers, on one machine, on several, and by packs."""
    share = 1 / number
    machine = {"CPU": 1000.0, "GPU": float(gpus)}
    assert room([machine], 1, share) == number * gpus
    assert room([machine, {"CPU": 8.0}, {"CPU": 5.0, "GPU": 1.0}], 1, share) == number * gpus + min(5, number)
    assert room([{"CPU": number * gpus - 1.0, "GPU": float(gpus)}], 1, share) == number * gpus - 1
    assert Packs(ResourcesConfig(), Store("unused"), "none", machine).room(Slot(1, share)) == number * gpus
    shares = Shares(ResourcesConfig(sparse={"gpus": share}), Store("unused"), [])
    if number > 1:
        assert shares.grow(training("a"))
        assert room([machine], 1, shares.of(training("a")).gpus) == (number - 1) * gpus


def test_what_was_measured_holds_for_the_same_network_batch_and_gpu_and_for_later_sweeps(tmp_path):
    store = Store(tmp_path)
    shares = Shares(AUTO, store, TABLE)
    first = training("a", "dense")
    assert shares.must_be_tried(first)
    assert shares.of(first) == Slot(1, 1.0)
    shares.learn(first, 2 * GIB)
    for later in (shares, Shares(AUTO, store, TABLE[1:])):
        for kind in ("dense", "imp", "sparse"):
            assert later.of(training("b", kind)) == Slot(1, 1 / 10), "24 GiB hold ten times 2.3 GiB"
        assert not later.must_be_tried(first)
        assert later.must_be_tried(training("c", width=2.0))
        assert later.must_be_tried(training("d", batch=256))
    assert Shares(AUTO, store, TABLE[:1]).must_be_tried(first), "another kind of GPU"
    shares.learn(first, GIB)
    assert shares.of(first) == Slot(1, 1 / 10), "the most that was seen counts"


def test_a_share_that_the_file_says_is_not_touched(tmp_path):
    shares = Shares(ResourcesConfig(sparse={"gpus": "1/3"}), Store(tmp_path), TABLE)
    shares.learn(training("a"), 100 * GIB)
    assert shares.of(training("a")) == Slot(1, 1 / 3)
    assert not shares.must_be_tried(training("a"))
    assert Store(tmp_path).root.files() == {}


def test_one_training_is_tried_while_the_others_of_its_kind_wait(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stages = [training("a1"), training("a2"), training("b", width=4.0), a_match("m")]
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), AUTO, TABLE)
    assert searcher.suggest("t1") == asdict(Work(["a1"], 1, 1.0, steps=5))
    assert searcher.suggest("t2") == asdict(Work(["b"], 1, 1.0, steps=5)), "a2 waits for what a1 takes"
    assert searcher.suggest("t3") == asdict(Work(["m"], 1, 1.0)), "no training: run whole"
    assert searcher.suggest("t4") is None
    searcher.on_trial_complete(trial_id="t1", result=ends({"outcome": "tried", "peak_bytes": 4 * GIB}))
    assert searcher.suggest("t5") == asdict(Work(["a1"], 1, 1 / 5))
    now[0] += 2
    assert searcher.suggest("t6") == asdict(Work(["a2"], 1, 1 / 5))
    assert "takes 4.0 GiB of GPU memory: 1 CPU, 0.2 GPU for each of its kind" in searcher.notes[0]
    searcher.on_trial_complete(trial_id="t5", result=ends({"outcome": "out of memory", "error": "CUDA"}))
    now[0] += 2
    assert searcher.suggest("t7")["gpus"] == 1 / 4, "what was measured did not suffice: the next larger share"
    for trial in ("t2", "t3", "t6", "t7"):
        searcher.on_trial_complete(trial_id=trial, result=ends({"outcome": "done"}))
    assert searcher.suggest("t8") == Searcher.FINISHED


@pytest.mark.parametrize("value", ["auto", "1/4", 0.25, 0, 1, "1"])
def test_shares_that_a_file_may_say(value):
    found = ResourcesConfig.model_validate({"dense": {"gpus": value}}).dense.gpus
    assert found == {"auto": "auto", "1/4": 0.25, 0.25: 0.25, 0: 0.0, 1: 1.0, "1": 1.0}[value]


def test_a_batch_holds_only_what_takes_the_same_share_and_only_a_whole_gpu_teaches(tmp_path):
    stages = [training("a1"), training("a2"), training("b", width=16.0), *(training(f"c{n}") for n in range(6))]
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), AUTO, TABLE)
    searcher.shares.learn(stages[0], 2 * GIB)
    searcher.seconds["sparse"] = 0.01
    first = searcher.suggest("t1")
    assert (first["stages"], first["gpus"]) == (["a1", "a2"], 1 / 10), "b was never tried"
    searcher.on_trial_complete(
        trial_id="t1", result=ends(*[{"outcome": "done", "peak_bytes": 20 * GIB} for _ in first["stages"]])
    )
    assert searcher.shares.of(stages[0]) == Slot(1, 1 / 10), "others were on that GPU, too"
    assert searcher.suggest("t2") == asdict(Work(["b"], 1, 1.0, steps=5))
