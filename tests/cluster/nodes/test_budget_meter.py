"""Budget and capacity with a clock of the test's own; and a sweep that its budget ends."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from ray.tune.experiment import Trial
from ray.tune.utils.object_cache import _ObjectCache

from raylth.cli import status, sweep
from raylth.cluster.address import ClusterError
from raylth.cluster.failures import CRASHED, NOT_STARTED
from raylth.cluster.nodes.budget_meter import Meter, Watchdog
from raylth.cluster.scheduler.graph_searcher import GraphSearcher
from raylth.cluster.scheduler.trial_scheduler import TrialScheduler
from raylth.cluster.slots import Slot
from raylth.config.budget import BudgetConfig, PricesConfig
from raylth.config.resources import ResourcesConfig
from raylth.report import load_results
from raylth.stages import Graph, Stage
from raylth.store import Store, locate
from tests.conftest import ONE_CPU, tiny_sweep

HEAD, WORKER = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    "harm", [b"", b'{"gpu_hours": 1.5, "us', b"[]", b'{"gpu_hours": 1}', b'{"gpu_hours": null, "usd": 0}']
)
def test_a_harmed_count_is_refused_since_a_budget_hangs_on_it(tmp_path, harm):
    file = locate(tmp_path) / "used.json"
    file.write(harm)
    with pytest.raises(ClusterError, match=r"budget: .*used\.json is harmed.*\{\"gpu_hours\": 0, \"usd\": 0\}"):
        Meter(BudgetConfig(), None, file)
    file.write(b'{"gpu_hours": 1.5, "usd": 0}')
    assert Meter(BudgetConfig(), None, file).used == {"gpu_hours": 1.5, "usd": 0.0}


def meter_of(tmp_path, clock, **budget) -> Meter:
    prices = PricesConfig(gpu_hour=1.5, cpu_hour=0.05, hour=0.2)
    return Meter(BudgetConfig(**budget), prices, Store(tmp_path).root / "used.json", clock)


def test_all_machines_are_charged_for_as_long_as_they_were_there(tmp_path, clock):
    meter = meter_of(tmp_path, clock, gpu_hours=6)
    meter.tick([HEAD])
    clock.now += 1800
    meter.tick([HEAD, WORKER])  # it came just now
    assert meter.used == {"gpu_hours": 0.0, "usd": pytest.approx(0.5 * (0.2 + 4 * 0.05))}
    clock.now += 3600
    meter.tick([HEAD, WORKER, WORKER])
    assert meter.used["gpu_hours"] == 2.0
    assert meter.used["usd"] == pytest.approx(0.2 + (0.2 + 4 * 0.05 + 2 * 1.5), abs=1e-4), "a GPU's price has its cores"
    clock.now += 3599
    meter.tick([HEAD])
    assert meter.exhausted is None
    clock.now += 3600
    meter.tick([HEAD])
    assert meter.used["gpu_hours"] == pytest.approx(5.9989, abs=1e-4), "nobody pays for machines that are gone"
    assert meter.exhausted is None
    meter.tick([WORKER])
    clock.now += 10
    meter.tick([WORKER])
    assert meter.exhausted == "budget.gpu_hours: 6.00 of 6 GPU-hours are used"


def test_a_later_run_continues_the_count_and_may_have_a_larger_budget(tmp_path, clock):
    meter = meter_of(tmp_path, clock, usd=3)
    meter.tick([WORKER])
    clock.now += 3600
    meter.tick([WORKER])
    assert meter.exhausted == "budget.usd: 3.20 of 3 USD are used"
    again = meter_of(tmp_path, clock, usd=3)
    assert again.exhausted == meter.exhausted
    assert meter_of(tmp_path, clock, usd=4).exhausted is None
    clock.now += 1e6
    again.tick([WORKER])
    assert again.usd == pytest.approx(3.2), "while no sweep ran nothing is charged"


def test_that_no_machine_joins_is_reported_after_so_many_minutes_and_then_less_and_less_often(clock):
    refused = {"spot-l4": "InsufficientInstanceCapacity"}
    watchdog, told = Watchdog(10, lambda: refused, clock), []
    asked = [("sparse", Slot(8, 1.0), 1), ("dense", Slot(8, 0.5), 1)]
    for minute in range(60):
        if (line := watchdog.look([HEAD], asked)) is not None:
            told.append((minute, line))
        clock.now += 60
    assert [minute for minute, _ in told] == [10, 20, 40]
    assert told[0][1].startswith(
        "no machine with 8 CPU, 1 GPU has joined for 10 min (spot-l4: InsufficientInstanceCapacity)."
    )
    assert "resources.sparse.gpus" in told[0][1]


def test_the_watchdog_is_quiet_while_anything_fits_or_nothing_waits(clock):
    watchdog = Watchdog(10, dict, clock)
    for _ in range(30):
        clock.now += 60
        assert watchdog.look([HEAD, WORKER], [("sparse", Slot(16, 1.0), 1), ("imp", Slot(1, 0.0), 1)]) is None
        assert watchdog.look([HEAD], []) is None
    team = [("dense", Slot(4, 1.0, workers=4), 3)]
    lines = []
    for _ in range(12):
        clock.now += 60
        lines.append(watchdog.look([HEAD, WORKER], team))
    assert sum(line is not None for line in lines) == 1, "two of three workers are not enough"


def test_trials_that_wait_for_a_machine_are_taken_back_when_no_stage_is_to_start(tmp_path):
    stages = [Stage("sparse", f"s{number}", {}, {}, {}) for number in range(3)]
    searcher = GraphSearcher(Graph(stages), Store(tmp_path), ResourcesConfig(pack="off"))
    trials = {name: Trial("stages", trial_id=name, stub=True) for name in ("t1", "t2", "t3")}
    suggested = {name: searcher.suggest(name)["stages"] for name in trials}
    trials["t1"].status = Trial.RUNNING
    controller = SimpleNamespace(
        _actor_cache=_ObjectCache(),
        _trial_to_actor={},
        get_live_trials=lambda: list(trials.values()),
        get_trials=lambda: list(trials.values()),
        stop_trial=lambda trial: searcher.on_trial_complete(trial.trial_id),
    )
    turns = []
    autopsy = TrialScheduler(searcher.causes, searcher.has_team, lambda: searcher.is_closed, turns.append)
    searcher.is_closed = True
    assert autopsy.choose_trial_to_run(controller) is None
    assert turns == [True]
    assert {key: searcher.graph.states[key] for (key,) in suggested.values()} == {
        "s0": "running",
        "s1": "waiting",
        "s2": "waiting",
    }
    assert not searcher.graph.incidents
    assert searcher.notes == []


def test_an_idle_worker_that_died_is_no_crash_of_the_stage_that_it_was_to_run():
    class Ended(SimpleNamespace):
        __hash__ = object.__hash__

    causes, trial = {}, Ended(trial_id="t1", pickled_error_file=None, error_file=None)
    TrialScheduler(causes).on_trial_error(SimpleNamespace(_resetting_trials={trial}), trial)
    assert causes["t1"][0] == NOT_STARTED
    TrialScheduler(causes).on_trial_error(SimpleNamespace(_resetting_trials=set()), trial)
    assert causes["t1"][0] == CRASHED


def test_all_places_round_what_was_used_alike(tmp_path, clock):
    """8.42499 would be 8.42 by itself, and 8.43 where 8.425 is written first."""
    meter = meter_of(tmp_path, clock, usd=1)
    meter.usd = 8.42499
    assert f"{meter.used['usd']:.2f} of 1 USD" in str(meter.exhausted)


def test_a_sweep_stops_at_its_budget_and_resumes_with_a_larger_one(tmp_path, monkeypatch, capsys):
    """A day costs so much that the first look at the machines uses it up; what runs is finished, and counted."""
    sparse = {"sparsities": [0.5], "rewinds": [1]}
    config = tiny_sweep(dense={"epochs": 150}, sparse=sparse)  # it is not done before the second look at the machines
    settings = config.model_dump(mode="json", exclude_defaults=True) | {"storage": str(tmp_path / "store")}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings | {"budget": {"usd": 1}, "prices": {"hour": 3000}}))

    trace = tmp_path / "trace"
    environment = os.environ | {"RAYLTH_TRACE": str(trace)}
    command = [sys.executable, "-m", "raylth.sweep", str(file)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert first.returncode == 3, first.stdout + first.stderr
    assert "no further stage is started; running stages finish" in first.stdout
    (used,) = re.findall(r"^budget\.usd: ([\d.]+) of 1 USD are used; raise it\.", first.stdout, flags=re.MULTILINE)
    assert float(used) >= 1
    events = [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []
    began, ended = ({event["key"] for event in events if event["event"] == name} for name in ("began", "ended"))
    assert began == ended, "what ran is finished"
    assert ended <= Store(tmp_path / "store").held().keys()
    assert sweep.main([str(file)]) == 3
    assert "Ray" not in capsys.readouterr().out, "nothing is started for it"
    assert status.main([str(tmp_path / "store")]) == 0
    shown = capsys.readouterr().out
    assert f"used so far: {float(used):.2f} USD" in shown
    assert "stopped" in shown
    for name, value in ONE_CPU.items():
        monkeypatch.setenv(name, value)
    assert sweep.main([str(file), "budget=null"]) == 0
    rows = load_results(tmp_path / "store")
    assert set(rows["status"]) == {"done"}
    assert isinstance(rows, pd.DataFrame)
    assert len(rows.query("stage == 'sparse'")) == 6
