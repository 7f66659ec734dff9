"""Searches: Optuna's suggestions through a real Ray, against objectives whose best points are known."""

import contextlib
import json
import re
import subprocess
import sys
import time
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import optuna_dashboard
import pandas as pd
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend
from ray import cloudpickle, tune

from raylth.cli.store import main as clean
from raylth.cli.sweep import main
from raylth.cluster.address import Joining
from raylth.cluster.nodes.budget_meter import Meter
from raylth.cluster.nodes.preflight import versions
from raylth.cluster.search import study as studies
from raylth.cluster.search.point_trial import EPOCHS
from raylth.cluster.search.study import Study, search_on_ray
from raylth.cluster.worker.payload import SearchShared
from raylth.config.budget import BudgetConfig, PricesConfig
from raylth.config.load import BadSweep, read_sweep
from raylth.driver import run_search as searches
from raylth.report import load_results
from raylth.report.searches import COLUMNS, load_search, search_figure, search_findings, search_table
from raylth.stages import run_plan
from raylth.store import Lease, Store, locate
from raylth.store.needs import Usage
from tests.conftest import tiny_sweep

LR = {"type": "float", "low": 1e-3, "high": 1.0, "log": True}
BEST = 0.05


def search_sweep(tmp_path, **changes):
    settings = tiny_sweep(
        sparse={"arms": ["lth", "permuted", "naive"], "sparsities": [0.5], "rewinds": [1]},
        match={"epochs": None},
    ).model_dump(mode="json", exclude_defaults=True)
    search = {"space": {"sparse.lr": LR}, "trials": 3, "holdout": 100, "stop": None, "final": {"replicates": 1}} | changes
    file = tmp_path / "search.yaml"
    outside = {name: search.pop(name) for name in ("analyses", "resources", "storage") if name in search}
    file.write_text(yaml.safe_dump(settings | {"storage": str(tmp_path / "store"), "search": search} | outside))
    return file


def identity(config):
    judged = searches.judged_by(config)
    return searches._fingerprint(judged, searches.load_data(judged.data).fingerprint())


class Bowl(tune.Trainable):
    """Stands for a training: three reports of a curve that rises to a height which depends on the settings."""

    def setup(self, config, shared, arms):
        self.config = config

    def reset_config(self, new_config):
        self.config = new_config
        return True

    def step(self):
        epochs = self.training_iteration + 1
        distance = np.log10(self.config["sparse.lr"] / BEST) ** 2 + (self.config.get("sparse.weight_decay", 0.0) * 1000) ** 2
        height = 90 - 20 * distance
        report = {"accuracy": height * epochs / 3, "model_sparsity": self.config.get("sparse.sparsities", 0.5)}
        if self.config.get("sparse.sparsities"):
            report["accuracy"] = 100 * (1 - self.config["sparse.sparsities"] ** 2) - self.config["sparse.lr"]
        return report | {EPOCHS: epochs, "finished": epochs == 3, "done": epochs == 3}


@pytest.fixture(scope="module", autouse=True)
def _light_workers():
    """Bowls travel to their workers as code: what this module imports would take each of them 8 s."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def run_stub(tmp_path, monkeypatch, trials=20, meter=None, **changes):
    """Run a search whose trials are Bowls; returns the study."""
    monkeypatch.setattr(studies, "PointTrial", Bowl)
    config = read_sweep(search_sweep(tmp_path, trials=trials, **changes))
    study = Study("naive", ["naive"], config, tmp_path / "studies.log")
    plain = config.model_dump(mode="json")
    shared = SearchShared(str(tmp_path), [], "", versions(), config=plain, every=1)
    search_on_ray(study, shared, trials - len(study.ended()), lambda line: None, str(tmp_path / "tune"), meter)
    return study


def test_it_finds_the_best_point_better_than_chance_with_the_same_budget(ray, tmp_path, monkeypatch):
    space = {"sparse.lr": LR, "sparse.weight_decay": {"type": "float", "low": 0.0, "high": 0.002}}
    found = run_stub(tmp_path, monkeypatch, trials=20, space=space, concurrent=1)
    assert len(found.ended()) == 20
    (best,) = found.winners()
    draws = np.random.default_rng(0)
    rates, decays = 10 ** draws.uniform(-3, 0, (200, 20)), draws.uniform(0, 0.002, (200, 20))
    chance = (90 - 20 * (np.log10(rates / BEST) ** 2 + (1000 * decays) ** 2)).max(axis=1)
    assert best.values[0] > np.quantile(chance, 0.75), "better than three of four random searches"
    first = found.ended()[0].params
    assert first == {"sparse.lr": 0.02, "sparse.weight_decay": 0.0005}, "what the file says is tried first"


def test_asha_stops_what_it_should_and_optuna_knows_that_it_was_stopped(ray, tmp_path, monkeypatch):
    points = [{"sparse.lr": rate} for rate in (0.05, 0.051, 0.9, 0.95, 0.001, 0.052)]
    stop = {"name": "asha", "grace_epochs": 1, "factor": 2}
    found = run_stub(tmp_path, monkeypatch, trials=6, start=points, stop=stop, concurrent=1)
    states = {round(trial.params["sparse.lr"], 3): trial.state.name for trial in found.ended()}
    assert states[0.05] == "COMPLETE"
    assert studies.scheduler(read_sweep(search_sweep(tmp_path, stop=stop)).search.stops)._max_t > 10**6, "none stops at T"
    assert {states[rate] for rate in (0.9, 0.95, 0.001)} == {"PRUNED"}
    assert found.winners()[0].params["sparse.lr"] == pytest.approx(0.05, rel=0.05)


def test_the_pareto_front_is_the_one_made_by_hand(ray, tmp_path, monkeypatch):
    space = {"sparse.sparsities": {"type": "categorical", "choices": [0.5, 0.8, 0.9]}, "sparse.lr": LR}
    points = [
        {"sparse.sparsities": s, "sparse.lr": rate}
        for s, rate in ((0.5, 0.1), (0.5, 0.2), (0.8, 0.3), (0.9, 0.9), (0.9, 0.4))
    ]
    found = run_stub(
        tmp_path, monkeypatch, trials=5, space=space, start=points, objectives=["accuracy", "model_sparsity"], concurrent=1
    )
    front = {(trial.params["sparse.sparsities"], round(trial.params["sparse.lr"], 3)) for trial in found.winners()}
    assert front == {(0.5, 0.1), (0.8, 0.3), (0.9, 0.4)}


def test_a_resumed_study_repeats_interrupted_trials_first_and_no_ended_ones(ray, tmp_path, monkeypatch):
    before = run_stub(tmp_path, monkeypatch, trials=4, concurrent=1)
    known = [trial.params for trial in before.ended()]
    cut_off = before.record.ask(
        fixed_distributions={"sparse.lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)}
    )
    after = run_stub(tmp_path, monkeypatch, trials=7, concurrent=1)
    ended = [trial.params for trial in after.ended()]
    assert ended[:4] == known
    assert len(ended) == 7
    assert ended[4] == cut_off.params
    assert len({trial["sparse.lr"] for trial in ended}) == 7


def test_a_study_opens_in_optunas_dashboard(ray, tmp_path, monkeypatch):
    found = run_stub(tmp_path, monkeypatch, trials=2)
    answers: list[str] = []
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(found.file)))
    asked: dict = {"PATH_INFO": "/api/studies"}
    setup_testing_defaults(asked)
    body = b"".join(optuna_dashboard.wsgi(storage)(asked, lambda status, headers, error=None: answers.append(status)))
    assert answers == ["200 OK"]
    assert [study["study_name"] for study in json.loads(body)["study_summaries"]] == ["naive"]


def test_a_search_ends_when_its_budget_does(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "LOOK_SECONDS", 0.0)
    meter = Meter(BudgetConfig(usd=1), PricesConfig(hour=5000), locate(tmp_path) / "used.json")
    found = run_stub(tmp_path, monkeypatch, trials=500, meter=meter, concurrent=1)
    assert meter.exhausted
    assert len(found.ended()) < 500


def test_a_killed_search_resumes_and_ends_with_a_report(one_ray, tmp_path, capsys):
    """The driver is killed in mid-search, while it writes its journal; that and the store know what was done."""
    file = search_sweep(tmp_path, trials=3, stop={"grace_epochs": 1})
    config = read_sweep(file)
    assert not run_plan(searches._shared_by_trials([searches.judged_by(config)]), Store(config.storage)).errors
    words = [sys.executable, "-m", "raylth.sweep", str(file)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("permuted 1/3"):
            break
    process.kill()
    process.communicate()
    assert seen[-1].startswith("permuted 1/3"), "".join(seen)
    with contextlib.suppress(ProcessLookupError):
        subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=False)  # Ray's processes end by themselves, too
    time.sleep(1)
    (journal,) = (tmp_path / "store/searches").glob("*/studies.log")
    with journal.open("ab") as log:
        log.write(b'{"op_code":5,"worker_id":"')
    with contextlib.suppress(FileExistsError):
        journal.with_name("studies.log.lock").symlink_to(
            "store/studies.log"
        )  # as from another folder, relative: no such file
    assert main([str(file)]) == 0
    printed = capsys.readouterr().out
    assert "studies.log: its incomplete last record is dropped" in printed.replace("\n", " ")
    told = re.findall(r"^(lth|permuted|naive) (\d)/3: ", printed, re.MULTILINE)
    assert ("lth", "3") not in told, "that study had ended"
    assert told[0] == ("permuted", "2")
    assert told[-1] == ("naive", "3")
    runs = [path for path in (tmp_path / "store/runs").iterdir() if (path / "search.json").exists()]
    assert len(runs) == 1, "the run by which the winners are judged"
    summary = json.loads((runs[0] / "search.json").read_text())
    assert {study["study"]: len(study["trials"]) for study in summary["studies"]} == {"lth": 3, "permuted": 3, "naive": 3}
    rows = load_results(runs[0]).query("stage == 'sparse'")
    assert sorted(rows["arm"]) == ["lth", "naive", "permuted"]
    assert set(rows["seed_a"]) == {int(rows["seed_a"].iloc[0])}
    trials = load_search(locate(runs[0]))
    assert len(search_table(trials)) == 3
    assert search_figure(trials, "a search").axes
    page = (runs[0] / "report/report.html").read_text()
    assert "Best of 3 trials each on 100 held-out training samples" in page
    assert not list((tmp_path / "store/states").rglob("*.safetensors")), "nothing is left of trainings that were stopped"
    store = Store(config.storage)
    assert clean(["gc", config.storage, "--yes"]) == 0
    needs = Usage.read(store).needs
    assert set(needs) == {runs[0].name, journal.parent.name}, "the winners' run and the search record what they need"
    assert set(store.held()) == frozenset().union(*needs.values()), "and nothing is left of the other trials"
    assert set(rows["key"]) <= needs[runs[0].name]
    assert main([str(file)]) == 0
    assert "nothing to train" in capsys.readouterr().out


def test_samplers_of_repeats_draw_other_points(tmp_path):
    for settings in ({}, {"settings": {"seed": 7}}):
        config = read_sweep(search_sweep(tmp_path, repeats=3, sampler={"name": "TPESampler", **settings}))
        drawn = []
        for repeat in (1, 2, 3):
            study = Study("naive", ["naive"], searches.judged_by(config, repeat), tmp_path / f"{len(settings)}.log", repeat)
            study.record.sampler = studies.sampler(study)
            drawn.append(
                study.record.ask({"sparse.lr": studies.distribution(config.search.space["sparse.lr"])}).params["sparse.lr"]
            )
        assert len(set(drawn)) == 3


def test_a_search_knows_what_its_trials_are_made_of(tmp_path, monkeypatch):
    """Another code of the network is another search; more trials and repeats are the same."""
    config = read_sweep(search_sweep(tmp_path))
    before = identity(config)
    more = read_sweep(search_sweep(tmp_path, trials=9, repeats=3))
    assert identity(more) == before
    monkeypatch.setattr(
        "raylth.stages.planning.stage_maker.code_of", lambda name, build: "other code" if name == "mnist1d" else None
    )
    assert identity(config) != before
    judged = searches.judged_by(more)
    assert searches._fingerprint(judged, "0" * 64) != searches._fingerprint(judged, "1" * 64), "data that changed"


def test_two_processes_are_not_at_one_search(tmp_path):
    config = read_sweep(search_sweep(tmp_path))
    store = Store(config.storage)
    with (
        Lease(store, identity(config)),
        pytest.raises(BadSweep, match="search: another process is already running this search"),
    ):
        searches.run_search(config, ["search.yaml"], Joining("local"))


def test_a_search_that_is_stopped_says_so_in_its_status(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(searches, "compute", interrupted)
    config = read_sweep(search_sweep(tmp_path))
    assert searches.run_search(config, ["search.yaml"], Joining("local")) == 130
    (file,) = (tmp_path / "store/runs").glob("*/status.json")
    assert json.loads(file.read_text())["state"] == "stopped"
    assert list((tmp_path / "store/checked").iterdir()), "networks that were tried are not tried again"


def test_points_to_start_at_are_completed_and_what_no_space_holds_is_left_out(tmp_path):
    decay = {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}
    both = {"sparse.lr": LR, "sparse.weight_decay": decay}
    some = read_sweep(search_sweep(tmp_path, space=both, start=[{"sparse.lr": 0.1}]))
    assert studies.first_points(some) == [{"sparse.lr": 0.1, "sparse.weight_decay": 0.0005}]
    samples = {"match.samples": {"type": "int", "low": 10, "high": 100}}
    assert studies.first_points(read_sweep(search_sweep(tmp_path, space=samples))) == [], "the file says null: all"
    with pytest.raises(ValueError, match=r"search\.start: sparse\.lr: 7 is not in its space"):
        studies.first_points(read_sweep(search_sweep(tmp_path, start=[{"sparse.lr": 7}])))


def test_several_objectives_need_no_word_about_stopping(tmp_path):
    config = read_sweep(search_sweep(tmp_path, objectives=["accuracy", "model_sparsity"], stop={"grace_epochs": 2}))
    judged = searches.judged_by(config)
    assert judged.search.stops is None
    assert read_sweep(search_sweep(tmp_path)).search.stops is None


def test_a_dense_network_that_diverges_is_a_bad_point_and_no_failure(ray, tmp_path):
    space = {"dense.lr": {"type": "categorical", "choices": [0.08, 900.0]}}
    config = searches.judged_by(read_sweep(search_sweep(tmp_path, trials=2, space=space, start=[{"dense.lr": 900.0}])))
    data = searches.load_data(config.data)
    study = Study("naive", ["naive"], config, tmp_path / "studies.log")
    plain = config.model_dump(mode="json")
    root = str(tmp_path / "store")
    shared = SearchShared(root, [ray.put(data)], data.fingerprint(), versions(), config=plain, every=0)
    search_on_ray(study, shared, 1, lambda line: None, str(tmp_path / "tune"))
    (trial,) = study.ended()
    assert (trial.state.name, trial.values) == ("COMPLETE", [0.0])


def test_a_wide_search_names_what_cannot_be(tmp_path, capsys):
    def refused(**changes):
        assert main([str(search_sweep(tmp_path, **changes))]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "sparse.lrr: there is no such setting" in refused(space={"sparse.lrr": LR})
    assert "seeds.base is not a setting that a search can change" in refused(
        space={"seeds.base": {"type": "int", "low": 1, "high": 2}}
    )
    assert "unknown sampler 'TPSampler', did you mean 'TPESampler'?" in refused(sampler={"name": "TPSampler"})
    assert "holdout" in refused(holdout=600)
    assert "whose arms have settings of their own" in refused(analyses={"overlap": {}})
    assert "several workers for one network" in refused(resources={"sparse": {"workers": 2}})
    assert "cannot be written" in refused(storage="/proc/nope/store")
    assert "low: 2 is not below high: 1" in refused(space={"sparse.lr": {"type": "float", "low": 2, "high": 1}})


def test_a_holdout_of_images_in_files_is_refused(tmp_path):
    settings = {"name": "a", "data": {"name": "imagenet", "root": "x", "holdout": 5}, "model": {"name": "resnet50"}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(BadSweep, match=r"data\.holdout: the images of imagenet stay in their files"):
        read_sweep(tmp_path / "a.yaml")


def test_findings_say_whether_the_gain_survives():
    best = [(arm, 1, 0, "complete", True, "sparse.lr = 0.1", "", 30, 60.0, None, 800) for arm in ("permuted", "naive")]
    common = {"stage": "sparse", "status": "done", "width": 1.0, "sparsity": 0.9, "rewind_epoch": 10, "run": "r"}
    common |= {"dataset": "d", "model": "m", "network": "B", "match_method": None, "match_epoch": None}
    for gain, expected in ((10, "survives"), (-10, "does not survive"), (0, "is not certain")):
        rows = [
            common | {"arm": arm, "replicate": number, "test_accuracy": accuracy, "key": f"{arm}{number}"}
            for number, noise in enumerate((0.0, 1.0, -1.0))
            for arm, accuracy in (("permuted", 50 + gain + noise), ("naive", 50.0))
        ]
        said = search_findings(pd.DataFrame(best, columns=COLUMNS), pd.DataFrame(rows))
        assert f"better than naive {expected} where" in said[1], said
        assert f"{gain:+.1f} points" in said[1]
