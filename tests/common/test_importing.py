"""What is imported is not searched for garbage, and what shows the results is imported before it is needed."""

import gc
import time
from types import SimpleNamespace

import pytest

from raylth.common.importing import uncollected
from raylth.driver import compute


def test_the_collector_rests_and_is_as_it_was_afterwards():
    with uncollected(), uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled(), "whoever turned it off wants it off"
    finally:
        gc.enable()


def test_the_report_is_imported_once_the_last_stages_are_with_their_workers(monkeypatch):
    now, imported = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(compute, "import_report", lambda: imported.append(now[0]))
    ahead = compute.ImportAhead()
    for moment, states in (
        (1, "waiting"),
        (2, "running"),
        (2.5, "running"),
        (2.6, "waiting"),
        (9, "running"),
        (9.9, "running"),
    ):
        now[0] = moment
        ahead.turn(SimpleNamespace(states={"a": "running", "b": states}))
        assert not imported
    now[0] = 10.1
    ahead.turn(SimpleNamespace(states={"a": "running", "b": "done"}))
    assert imported == [10.1]
