"""Whole searches: judged by a part of the training samples, never by the test split; and once more, with more repeats."""

import dataclasses
import json
import re

import numpy as np

from raylth.cluster.address import Joining
from raylth.config.load import read_sweep
from raylth.core.data import load_dataset
from raylth.driver import run_search as searches
from raylth.stages import run_plan
from raylth.store import Store
from tests.cluster.search.test_search import search_sweep


def test_trials_are_judged_on_held_out_training_samples_and_the_test_split_is_discarded():
    whole = load_dataset("mnist1d", num_train=500, num_test=200)
    held = whole.holding_out(100)
    np.testing.assert_array_equal(held.test_x, whole.train_x[400:500])
    np.testing.assert_array_equal(held.train_x, whole.train_x[:400])
    for array in (held.train_x, held.train_y, held.test_x, held.test_y):
        assert not np.shares_memory(array, whole.test_x)
        assert not np.shares_memory(array, whole.test_y)


def test_a_whole_search_never_reads_the_test_split(one_ray, tmp_path, monkeypatch):
    """Its samples and labels are nonsense the second time: every trial is judged alike."""
    seen = []
    for number, poison in enumerate((False, True)):
        folder = tmp_path / str(number)
        folder.mkdir()

        def load(*names, poison=poison, **settings):
            found = load_dataset(*names, **settings)
            if not poison:
                return found
            return dataclasses.replace(
                found, test_x=np.full_like(found.test_x, np.nan), test_y=np.full_like(found.test_y, -1)
            )

        monkeypatch.setattr("raylth.stages.context.load_dataset", load)
        monkeypatch.setattr(
            "raylth.driver.run_search.run_sweep", lambda *words: 0
        )  # the winners' training is no part of the search
        config = read_sweep(search_sweep(folder, trials=2, concurrent=1), ["sparse.arms=[permuted]"])
        assert searches.run_search(config, ["search.yaml"], Joining("local")) == 0
        (journal,) = (folder / "store/searches").glob("*/studies.log")
        (kept,) = (folder / "store/runs").glob("*/search.json")
        assert journal.stat().st_size
        seen.append(json.loads(kept.read_text())["studies"])
    assert seen[0] == seen[1]
    assert len(seen[0][0]["trials"]) == 2


def test_a_search_resumes_when_its_repeats_are_raised(one_ray, tmp_path, monkeypatch, capsys):
    """The first repeat's trials are those of before; each repeat has pairs and points of its own, and its winner."""
    monkeypatch.setattr(
        "raylth.driver.run_search.run_sweep", lambda *words: 0
    )  # the winners' training is no part of the search

    both = read_sweep(search_sweep(tmp_path, repeats=2), ["sparse.arms=[naive]"])
    shared = searches._shared_by_trials([searches.judged_by(both, repeat) for repeat in (1, 2)])
    assert not run_plan(shared, Store(both.storage)).errors  # here: a worker for them would take seconds to start

    def run(repeats):
        file = search_sweep(tmp_path, trials=2, repeats=repeats, start=[{"sparse.lr": 1.0}])
        assert searches.run_search(read_sweep(file, ["sparse.arms=[naive]"]), [str(file)], Joining("local")) == 0
        return re.findall(r"^(naive.*) (\d)/2: ", capsys.readouterr().out, re.MULTILINE)

    assert run(1) == [("naive", "1"), ("naive", "2")]
    assert run(2) == [("naive repeat 2", "1"), ("naive repeat 2", "2")]
    assert run(2) == []
    summaries = [json.loads(path.read_text())["studies"] for path in (tmp_path / "store/runs").glob("*/search.json")]
    (once,), (first, second) = sorted(summaries, key=len)
    assert first == once
    assert [(study["study"], study["repeat"]) for study in (first, second)] == [("naive", 1), ("naive", 2)]
    for study in (first, second):
        assert [trial["epochs"] for trial in study["trials"]] == [3, 3]
        for trial in study["trials"]:
            is_named = trial["params"]["sparse.lr"] == 1.0 and trial["is_best"]
            assert trial["edges"] == (["sparse.lr = 1 is at the upper end of its range (0.001 to 1)"] if is_named else [])
    assert first["trials"][0]["params"] == second["trials"][0]["params"] == {"sparse.lr": 1.0}
    assert first["trials"][0]["values"] != second["trials"][0]["values"], "judged on other pairs"
    assert first["trials"][1]["params"] != second["trials"][1]["params"], "drawn by another sampler"
