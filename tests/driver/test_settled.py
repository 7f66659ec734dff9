"""`precision: auto` is settled once for a run: by the machine that starts it, and recorded for those where it continues."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from raylth.cli import sweep
from raylth.cluster.address import LOCAL, Joining
from raylth.common.exit_codes import ExitCode
from raylth.config.load import BadSweep, read_sweep
from raylth.config.tracking import TRACKERS, Tracker
from raylth.config.types import Settings
from raylth.core import precision
from raylth.driver import run_search as searches
from raylth.driver.prepare import prepare
from raylth.driver.run_record import SETTLED, Run
from raylth.driver.run_sweep import run_sweep
from raylth.export.stored_network import find_network
from raylth.report import load_results
from raylth.report.recipe import recipe_of
from raylth.report.results import load_manifest
from raylth.stages import make_plan
from raylth.store import Store, locate
from tests.conftest import tiny_sweep

QUICKSTART = Path(__file__).resolve().parents[2] / "sweeps" / "quickstart.yaml"
SMALL = {"arms": ["lth"], "sparsities": [0.5], "rewinds": [1]}
AUTO = {**SMALL, "precision": "auto"}
JOINING = Joining(LOCAL)


@pytest.fixture
def machine(monkeypatch):
    """Makes this one a machine whose processor multiplies in bf16, or one whose processor does not."""
    return lambda has_bf16: monkeypatch.setattr(precision, "has_bf16", lambda: has_bf16)


def precisions(plan, kind="sparse"):
    return {stage.settings.recipe.precision for stage in plan.stages if stage.kind == kind}


def keys(plan):
    return [key for stage in plan.stages for key in stage.produces]


def written(tmp_path, config):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    return str(file)


@pytest.mark.parametrize(("has_bf16", "fastest"), [(True, "bf16"), (False, "float32")])
def test_auto_has_the_keys_of_the_precision_written_out(has_bf16, fastest, machine):
    machine(has_bf16)
    plan = make_plan(read_sweep(QUICKSTART))
    assert precisions(plan) == {fastest}
    assert plan.config.sparse.precision == fastest
    assert keys(plan) == keys(make_plan(read_sweep(QUICKSTART, [f"sparse.precision={fastest}"])))
    other = {"bf16": "float32", "float32": "bf16"}[fastest]
    assert keys(plan) != keys(make_plan(read_sweep(QUICKSTART, [f"sparse.precision={other}"])))
    imp = make_plan(tiny_sweep(imp={"precision": "auto"}))
    assert (precisions(imp, "imp"), precisions(imp)) == ({fastest}, {"float32"})


@pytest.mark.parametrize(("gpus", "found"), [(0, "bf16"), ("1/2", "float32"), ("auto", "float32"), (2, "float32")])
def test_a_gpu_share_gives_float32(gpus, found, machine):
    machine(True)
    asked = {"sparse": {"precision": "auto"}, "imp": {"precision": "auto"}}
    plan = make_plan(tiny_sweep(**asked, resources={"sparse": {"gpus": gpus}}))
    assert precisions(plan) == {found}
    assert precisions(plan, "imp") == {"bf16"}, "its own share decides"


def test_a_run_resumes_with_its_settled_precision_on_a_machine_of_the_other_kind(machine, tmp_path, capsys):
    config = tiny_sweep(sparse=AUTO, storage=str(tmp_path / "store"))
    store = Store(config.storage)
    machine(True)
    assert run_sweep(config, [], JOINING) == 0
    run = Run.open(config, store)
    assert json.loads((run.folder / SETTLED).read()) == {"precision": {"sparse": "bf16"}}
    capsys.readouterr()
    machine(False)
    assert run_sweep(config, [], JOINING) == 0
    assert "nothing to train, all" in capsys.readouterr().out
    assert sweep.main([written(tmp_path, config), "--dry-run"]) == 0
    (total,) = (line for line in capsys.readouterr().out.splitlines() if " all " in line)
    assert total.split("│")[4].strip() == "0", "to run"
    results = load_results(run.folder)
    assert dict(results.groupby("stage")["precision"].unique().map(list)) == {
        "dense": ["float32"],
        "imp": ["float32"],
        "sparse": ["bf16"],
    }
    manifest = load_manifest(run.folder)
    assert manifest["config"]["sparse"]["precision"] == "bf16"
    papers = {**manifest["config"], "data": {"name": "cifar10"}, "model": {"name": "resnet20"}}
    assert "sparse arithmetic bf16, the paper does not say" in recipe_of({**manifest, "config": papers}).lines
    network = find_network(store, results.query("stage == 'sparse'")["key"].iloc[0])
    assert network.origin.stage.settings.recipe.precision == "bf16", "planned again, with the key that it has"


def test_it_is_recorded_when_the_sweep_starts_and_not_before(machine, tmp_path):
    config = tiny_sweep(sparse=AUTO, storage=str(tmp_path / "store"))
    store = Store(config.storage)
    machine(True)
    assert sweep.main([written(tmp_path, config), "--dry-run"]) == 0
    assert not (tmp_path / "store").exists()
    prepared = prepare(config, print)
    assert not (prepared.run.folder / SETTLED).exists(), "it may still be refused"
    machine(False)
    assert precisions(prepare(config, print).plan) == {"float32"}
    prepared.update(prepared.graph, 0)
    again = prepare(config, print)
    assert keys(again.plan) == keys(prepared.plan)
    assert again.run.name == prepared.run.name
    with_gpu = config.model_copy(update={"resources": tiny_sweep(resources={"sparse": {"gpus": 1}}).resources})
    assert precisions(prepare(with_gpu, print).plan) == {"bf16"}, "where it runs never changes a run that has begun"
    again.update(again.graph, 0)
    assert precisions(prepare(config, print).plan) == {"bf16"}
    assert Run.open(tiny_sweep(sparse={**SMALL, "precision": "bf16"}), store).name != again.run.name
    assert not (Run.open(tiny_sweep(sparse=SMALL), store).folder / SETTLED).exists()


@pytest.mark.parametrize("record", [b"", b"[]", b'{"precision": {"sparse": "bf8"}}', b'{"precision": ["sparse"]}'])
def test_a_damaged_record_is_refused_in_one_line(record, machine, tmp_path, capsys):
    config = tiny_sweep(sparse=AUTO, storage=str(tmp_path / "store"))
    run = Run.open(config, Store(config.storage))
    (run.folder / SETTLED).write(record)
    with pytest.raises(BadSweep, match=r"settled.json, which says .* is damaged: remove it"):
        prepare(config, print)
    assert sweep.main([written(tmp_path, config), "--dry-run"]) == 2
    assert "settled.json" in capsys.readouterr().err


def test_a_search_gives_its_workers_settled_settings(machine, tmp_path, monkeypatch):
    space = {"sparse.lr": {"type": "float", "low": 1e-3, "high": 1.0}}
    asked = {"space": space, "trials": 1, "holdout": 100, "stop": None, "final": {"replicates": 1}, "repeats": 2}
    config = tiny_sweep(sparse=AUTO, match={"epochs": None}, search=asked, storage=str(tmp_path / "store"))
    seen = []

    def stopped(repeats, dataset, run, *rest):
        seen.append((run.name, [(repeat.sparse.precision, sorted(keys(make_plan(repeat)))) for repeat in repeats]))
        raise KeyboardInterrupt

    monkeypatch.setattr(searches, "_search", stopped)
    for has_bf16 in (True, False):
        machine(has_bf16)
        searches.run_search(config, [], JOINING)
    assert [name for name, _ in seen[0][1]] == ["bf16", "bf16"]
    assert seen[0] == seen[1], "the same search, on another machine"
    assert (
        "bf16" in (locate(config.storage) / "runs" / Run.open(config, Store(config.storage)).name / SETTLED).read().decode()
    )


def test_a_search_starts_where_the_store_does_not_take_what_was_settled(machine, tmp_path, monkeypatch):
    """It is tried again later, as in a sweep."""
    space = {"sparse.lr": {"type": "float", "low": 1e-3, "high": 1.0}}
    asked = {"space": space, "trials": 1, "holdout": 100, "stop": None, "final": {"replicates": 1}}
    config = tiny_sweep(sparse=AUTO, match={"epochs": None}, search=asked, storage=str(tmp_path / "store"))
    searched, write = [], type(locate(config.storage)).write

    def refused(place, data, **how):
        if place.name == SETTLED:
            raise OSError("no answer")
        write(place, data, **how)

    def stopped(*given):
        searched.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(locate(config.storage)), "write", refused)
    monkeypatch.setattr(searches, "_search", stopped)
    machine(True)
    assert searches.run_search(config, [], JOINING) == ExitCode.INTERRUPTED
    assert len(searched) == 1
    run = Run.open(config, Store(config.storage))
    assert not run.keep_settled()
    monkeypatch.undo()
    assert run.keep_settled()
    assert (run.folder / SETTLED).exists()


def test_a_search_opens_trackers_of_ones_own_before_anything_is_tried(tmp_path, monkeypatch):
    opened = []

    def refuses(settings, sweep, run):
        opened.append((sweep, run))
        raise OSError("no server there")

    monkeypatch.setitem(TRACKERS._entries, "own:closed", Tracker(open=refuses, settings=Settings))
    monkeypatch.setattr(searches, "_search", lambda *given: pytest.fail("it was searched"))
    space = {"sparse.lr": {"type": "float", "low": 1e-3, "high": 1.0}}
    asked = {"space": space, "trials": 1, "holdout": 100, "stop": None, "final": {"replicates": 1}}
    settings = {"sparse": SMALL, "match": {"epochs": None}, "log": {"custom": {"own:closed": {}}}}
    config = tiny_sweep(**settings, search=asked, storage=str(tmp_path / "store"))
    with pytest.raises(BadSweep, match=r"log.custom.own:closed: cannot be opened: OSError: no server there"):
        searches.run_search(config, [], JOINING)
    assert [sweep for sweep, _ in opened] == ["tiny"]


def test_a_search_does_not_try_auto(tmp_path):
    space = {"sparse.precision": {"type": "categorical", "choices": ["float32", "auto"]}}
    asked = {"space": space, "trials": 1, "holdout": 100, "stop": None, "final": {"replicates": 1}}
    config = tiny_sweep(sparse=SMALL, match={"epochs": None}, search=asked, storage=str(tmp_path / "store"))
    with pytest.raises(BadSweep, match=r"search.space.sparse.precision: sparse.precision: auto may differ"):
        searches.run_search(config, [], JOINING)


def test_a_plan_of_ones_own_needs_no_run(machine, tmp_path):
    machine(True)
    plan = make_plan(tiny_sweep(sparse=AUTO))
    assert make_plan(plan.config).stages == plan.stages
    assert replace(plan).config.sparse.precision == "bf16"
