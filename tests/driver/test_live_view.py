"""What a person sees while a sweep runs, by a clock that the test turns."""

import time

import pytest
from rich.console import Console

from raylth.driver.live_view import PLAIN_INTERVAL, SweepView
from raylth.driver.progress import speed
from raylth.stages import Graph, Stage


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def view(clock):
    with open("/dev/null", "w") as nowhere:
        yield SweepView(Console(record=True, file=nowhere, width=200), "two stages to run")


def graph_of(*epochs):
    return Graph([Stage("dense", str(number), {}, {}, {}, length) for number, length in enumerate(epochs)])


def tell(view, clock, graph, seconds, epochs):
    """Let time pass, update, and return the line's speed."""
    clock[0] += seconds
    view.update(graph, epochs, [])
    return view.console.export_text().splitlines()[-1].partition("; ")[2]


def test_the_time_left_waits_for_seconds_of_training_and_leaves_the_start_out(view, clock):
    """Ray starts for 20 s, then two epochs are trained a second; 1,000 are ahead."""
    graph = graph_of(600, 400)
    assert tell(view, clock, graph, 0, 0) == "starting, elapsed 0 s"
    assert tell(view, clock, graph, 20, 0) == "starting, elapsed 20 s"
    first = tell(view, clock, graph, PLAIN_INTERVAL, 20)
    assert first == "2.0 epochs/s, elapsed 30 s", "no estimate from one sample"
    assert tell(view, clock, graph, PLAIN_INTERVAL, 40) == "2.0 epochs/s, elapsed 40 s, about 8 min 00 s left"


def test_an_estimate_needs_five_seconds_of_training(view, clock, monkeypatch):
    monkeypatch.setattr("raylth.driver.live_view.PLAIN_INTERVAL", 0.5)
    graph = graph_of(1000)
    tell(view, clock, graph, 0, 0)
    shown = [tell(view, clock, graph, 0.5, number) for number in range(1, 13)]
    assert [" left" in text for text in shown] == [False] * 10 + [True] * 2
    assert shown[-1].endswith("about 8 min 14 s left")


def test_work_that_trains_nothing_is_no_start(view, clock):
    graph = graph_of(0, 0)
    graph.num_computed = 1
    assert tell(view, clock, graph, 3, 0) == "working, elapsed 3 s"


def test_the_heading_stands_once_before_the_first_line(view, clock):
    graph = graph_of(5)
    for _ in range(2):
        clock[0] += PLAIN_INTERVAL
        view.update(graph, 0, [])
    lines = view.console.export_text().splitlines()
    assert lines[0] == "two stages to run"
    assert lines.count("two stages to run") == 1
    assert len(lines) == 3


def test_slow_epochs_are_shown_in_seconds_and_the_last_line_once(view, clock):
    """An epoch of 20 s on one worker; then the sweep is finished and is still reported."""
    graph = graph_of(30)
    tell(view, clock, graph, 0, 0)
    for epochs in (0, 0, 1, 1, 2, 2):
        told = tell(view, clock, graph, PLAIN_INTERVAL, epochs)
    assert told.startswith(("20 s/epoch", "15 s/epoch", "30 s/epoch"))
    assert " left" in told
    graph.finish(graph.next_ready().key)
    before = len(view.console.export_text(clear=False).splitlines())
    for _ in range(3):
        clock[0] += PLAIN_INTERVAL
        view.update(graph, 30, [])
    lines = view.console.export_text().splitlines()
    assert len(lines) == before + 1
    assert " left" not in lines[-1]


@pytest.mark.parametrize(
    ("rate", "said"),
    [(0.0, "training"), (0.05, "20 s/epoch"), (0.5, "2.0 s/epoch"), (1.0, "1.0 epochs/s"), (1e-3, "1000 s/epoch")],
)
def test_a_speed_says_something(rate, said):
    assert speed(rate) == said
