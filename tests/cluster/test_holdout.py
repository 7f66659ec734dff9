"""The split that a search judges by: a part of the training samples, and never the test split."""

import dataclasses
import json

import numpy as np

from raylth import search as searches
from raylth.cluster.address import Joining
from raylth.core.data import load_dataset
from raylth.sweepfile import read_sweep
from tests.cluster.test_search import search_sweep


def test_trials_are_judged_on_held_out_training_samples_and_the_test_split_is_let_go():
    whole = load_dataset("mnist1d", num_train=500, num_test=200)
    held = whole.holding_out(100)
    np.testing.assert_array_equal(held.test_x, whole.train_x[400:500])
    np.testing.assert_array_equal(held.train_x, whole.train_x[:400])
    for array in (held.train_x, held.train_y, held.test_x, held.test_y):
        assert not np.shares_memory(array, whole.test_x)
        assert not np.shares_memory(array, whole.test_y)


def test_a_whole_search_never_reads_the_test_split(tmp_path, monkeypatch):
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
        monkeypatch.setattr("raylth.search.run_sweep", lambda *words: 0)  # the winners' training is no part of the search
        config = read_sweep(search_sweep(folder, trials=2, concurrent=1), ["sparse.arms=[permuted]"])
        assert searches.run_search(config, ["search.yaml"], Joining("local")) == 0
        (journal,) = (folder / "store/searches").glob("*/studies.log")
        (kept,) = (folder / "store/runs").glob("*/search.json")
        assert journal.stat().st_size
        seen.append(json.loads(kept.read_text())["studies"])
    assert seen[0] == seen[1]
    assert len(seen[0][0]["trials"]) == 2
