"""`raylth store`: what sweeps hold of a store, and what is removed of it, with two real sweeps that share networks."""

import json
import shutil
import time

import pytest

from raylth.cli.store import main
from raylth.cli.sweep import main as sweep
from raylth.driver.progress import StatusFile
from raylth.driver.run_record import Run
from raylth.report import load_results
from raylth.stages import Graph, make_plan, result_rows, run_plan, scan
from raylth.store import Lease, Store
from raylth.store.needs import Usage, keep_needs
from tests.conftest import tiny_sweep

SWEEPS = [
    {"sparse": {"arms": ["lth"], "sparsities": [0.3], "rewinds": [1]}, "match": {"epochs": [4]}},
    {"sparse": {"arms": ["lth"], "sparsities": [0.5], "rewinds": [1]}, "match": {"epochs": [4]}, "name": "other"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with two finished sweeps of the same dense networks."""
    store = Store(tmp_path_factory.mktemp("made") / "store")
    for settings in SWEEPS:
        config = tiny_sweep(**settings)
        plan = make_plan(config)
        graph = run_plan(plan, store)
        assert not graph.errors
        run = Run.open(config, store)
        run.write(result_rows(plan, graph, store, run.name), graph)
    return store


@pytest.fixture
def store(made, tmp_path):
    """A copy to remove from."""
    shutil.copytree(made.root.path, tmp_path / "store")
    return Store(tmp_path / "store")


def names(store):
    return [Run.open(tiny_sweep(**settings), store).name for settings in SWEEPS]


def plans():
    return [make_plan(tiny_sweep(**settings)) for settings in SWEEPS]


def produced(plan):
    return {key for stage in plan.stages for key in stage.produces}


def ask(store, *words):
    return main([words[0], str(store.root), *words[1:]])


def test_the_list_says_what_each_holds_and_shares(store, capsys):
    assert ask(store, "list", "--json") == 0
    rows = {row["run"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    one, two = map(produced, plans())
    for name, keys in zip(names(store), (one, two), strict=True):
        size = sum(sum(files.values()) for key, files in store.held().items() if key in keys)
        shared = sum(sum(files.values()) for key, files in store.held().items() if key in one & two)
        assert rows[name] == {
            "run": name, "state": "unknown", "artefacts": len(keys), "held": len(keys), "bytes": size, "shared_bytes": shared,
        }  # fmt: skip
        assert 0 < shared < size
    assert ask(store, "list") == 0
    assert f"{len(one)} of {len(one)}" in capsys.readouterr().out


def test_a_removed_sweep_leaves_the_other_whole_and_can_be_run_again(store, capsys):
    one, two = names(store)
    before = store.held()
    assert ask(store, "rm", one) == 0
    assert "nothing was removed; --yes removes them" in capsys.readouterr().out
    assert store.held() == before
    assert ask(store, "rm", one, "--yes") == 0
    first, second = plans()
    assert set(store.held()) == produced(second)
    assert scan(second, store).finished
    assert set(load_results(store.root)["run"]) == {two}
    graph = scan(first, store)
    assert not graph.finished
    assert not run_plan(first, store).errors
    assert set(store.held()) == produced(first) | produced(second)


def test_gc_removes_what_no_run_needs_and_nothing_else(store, capsys):
    _, second = plans()
    one, _ = names(store)
    keep_needs(store, one, [])
    assert ask(store, "gc") == 0
    assert "nothing was removed" in capsys.readouterr().out
    assert set(store.held()) > produced(second)
    assert ask(store, "gc", "--yes") == 0
    assert set(store.held()) == produced(second)
    assert ask(store, "gc", "--yes") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 artefacts (0 bytes)")


def test_what_a_living_process_computes_is_left_alone(store, capsys):
    one, two = names(store)
    first, second = plans()
    (key,) = list(produced(first) - produced(second))[:1]
    with Lease(store, key):
        assert ask(store, "rm", one, "--yes") == 2
        assert f"a process computes {key[:12]}" in capsys.readouterr().err
        assert ask(store, "gc", "--yes") == 0, "it is needed"
        assert ask(store, "rm", two, "--yes") == 0, "another's"
    with Lease(store, "f" * 64):
        assert ask(store, "gc", "--yes") == 2
        assert "a process computes ffffffffffff, which no run needs" in capsys.readouterr().err
    assert set(store.held()) == produced(first)


def test_a_running_sweep_is_not_removed_and_a_dead_one_is(store, capsys):
    one, _ = names(store)
    graph = Graph(plans()[0].stages)
    status = StatusFile(store.root / "runs" / one)
    status.update(graph, 1)
    assert ask(store, "rm", one, "--yes") == 2
    assert f"{one} is running: stop it first" in capsys.readouterr().err
    found = json.loads(status.path.read())
    status.path.write(json.dumps({**found, "time": time.time() - 1000}).encode())
    assert ask(store, "rm", one, "--yes") == 0


def test_a_sweep_records_what_it_needs_also_where_there_is_nothing_to_train(store, capsys, tmp_path):
    one, _ = names(store)
    (store.root / "runs" / one / "artefacts.json").remove()
    assert ask(store, "gc", "--yes") == 2
    assert f"{one}: no record of the artefacts that it needs" in capsys.readouterr().err
    assert ask(store, "list") == 0
    assert "not recorded" in capsys.readouterr().out
    file = tmp_path / "tiny.yaml"
    settings = tiny_sweep(**SWEEPS[0]).model_dump(mode="json", exclude_defaults=True)
    file.write_text(json.dumps({**settings, "storage": str(store.root)}))
    assert sweep([str(file)]) == 0
    assert Usage.read(store).needs[one] == produced(plans()[0])


@pytest.mark.parametrize(("words", "message"), [(["rm"], "rm needs a RUN"), (["gc", "x"], "gc takes no RUN")])
def test_words_that_do_not_fit_are_refused(store, words, message, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        ask(store, *words)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_is_not_there_is_named(store, capsys):
    assert ask(store, "rm", "none", "--yes") == 2
    assert capsys.readouterr().err == f"{store.root}: no run 'none' (there are {', '.join(sorted(names(store)))})\n"


def test_what_is_no_run_is_neither_listed_nor_removed(store, capsys):
    runs = store.root / "runs"
    (runs / "afile.txt").write(b"precious")
    (runs / "notes" / "readme.txt").write(b"precious")
    (runs / names(store)[0] / "status.json").write(b'{"state": null}')
    assert ask(store, "list", "--json") == 0
    rows = {row["run"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == set(names(store))
    assert rows[names(store)[0]]["state"] == "unreadable"
    assert ask(store, "list") == 0
    assert "afile.txt" not in capsys.readouterr().out
    for stray in ("afile.txt", "notes"):
        assert ask(store, "rm", stray, "--yes") == 2
        assert capsys.readouterr().err.startswith(f"{store.root}: no run '{stray}' (there are ")
    assert (runs / "afile.txt").read() == (runs / "notes" / "readme.txt").read() == b"precious"


def test_an_empty_place_is_named(tmp_path, capsys):
    assert main(["list", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path}: no sweep has run here; expected {tmp_path}/runs/<run>\n"
