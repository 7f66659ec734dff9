"""What an answer costs: reads of the store, and who waits for whom."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raylth.serve import app, figures
from raylth.serve.answers import RECENT, Kept, Recent
from raylth.store import DiskLocation, locate
from tests.serve import stores
from tests.serve.conftest import serving
from tests.serve.stores import OLD, STUDY


def noted(found, name, ask):
    def note(self, *words, **named):
        found.append(f"{name} {self}")
        return ask(self, *words, **named)

    return note


@pytest.fixture
def asked(monkeypatch):
    """What the store was asked for since the list was emptied."""
    found = []
    for name in ("read", "modified", "exists", "names", "files"):
        monkeypatch.setattr(DiskLocation, name, noted(found, name, getattr(DiskLocation, name)))
    return found


def test_all_readers_together_read_the_store_once(tmp_path, asked):
    store = locate(tmp_path)
    stores.write_study(store)
    paths = ["/sweeps.json", f"/runs/{STUDY}/progress.json", f"/runs/{STUDY}/data.json"]
    with serving(store, recent=600.0) as served:
        tags = {path: served.get(path)[1]["ETag"] for path in paths}
        asked.clear()
        for _ in range(3):
            for path, tag in tags.items():
                assert served.get(path, If_None_Match=tag)[0] == 304
                assert served.get(path)[0] == 200, "another reader"
            assert served.get(f"/runs/{STUDY}/curves/1.0-0.9-10.json", If_None_Match=tags[paths[2]])[0] == 304
        assert asked == []


def test_what_is_asked_for_again_is_read_again(tmp_path):
    store = locate(tmp_path)
    stores.write_study(store)
    with serving(store, recent=1.0) as served:
        path = f"/runs/{STUDY}/progress.json"
        tag = served.get(path)[1]["ETag"]
        stores.write_json(store / "runs" / STUDY / "status.json", stores.status_of("running"))
        deadline = time.monotonic() + 60
        while served.get(path, If_None_Match=tag)[0] == 304:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert json.loads(served.get(path)[2])["state"] == "running"


def test_what_is_kept_is_younger_than_a_pages_next_look():
    script = (Path(app.__file__).parent / "static" / "page.js").read_text()
    assert 0 < RECENT < int(re.search(r"const EVERY = (\d+);", script)[1]) / 1000


def test_a_run_whose_figures_are_made_keeps_no_other_answer_waiting(served, monkeypatch):
    begun, go = threading.Event(), threading.Event()

    def slow(run):
        begun.set()
        assert go.wait(60)
        return {"figures": [], "missing": []}

    monkeypatch.setattr(app, "figures_data", slow)
    with ThreadPoolExecutor() as pool:
        drawn = pool.submit(served.get, f"/runs/{STUDY}/figures.json")
        assert begun.wait(60)
        others = [pool.submit(served.get, f"/runs/{run}/data.json") for run in (STUDY, OLD)]
        try:
            assert [other.result(30)[0] for other in others] == [200, 200]
            assert not drawn.done()
        finally:
            go.set()
        assert drawn.result(30)[0] == 200


def test_one_name_is_made_once_and_another_at_the_same_time():
    kept, made, both = Kept(), [], threading.Barrier(2, timeout=30)

    def make(name):
        made.append(name)
        both.wait()  # until the other name is being made, too
        time.sleep(0.1)
        return name.upper()

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda name: kept.get(name, "1", lambda: make(name)), ["a", "b", "a", "b", "a"]))
    assert found == ["A", "B", "A", "B", "A"]
    assert sorted(made) == ["a", "b"]
    assert not kept.locks, "no lock is left of what nobody makes"


def test_what_failed_is_not_kept_and_what_is_old_makes_room():
    recent, numbers = Recent(600.0, most=2), iter(range(9))
    with pytest.raises(OSError, match="gone"):
        recent.read("a", lambda: (_ for _ in ()).throw(OSError("gone")))
    assert [recent.read(name, lambda: next(numbers)) for name in "aabca"] == [0, 0, 1, 2, 3]


def test_matplotlib_draws_for_one_thread_at_a_time(store, monkeypatch):
    inside, most = [], []

    class Canvas(figures.FigureCanvasSVG):
        def print_svg(self, *words, **named):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.2)
            inside.pop()
            return super().print_svg(*words, **named)

    monkeypatch.setattr(figures, "FigureCanvasSVG", Canvas)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(figures.figures_data, [store / "runs" / STUDY] * 3))
    assert [len(each["figures"]) for each in found] == [1, 1, 1]
    assert len(most) >= 3
    assert set(most) == {1}
