"""A store whose files are harmed: every file in turn, a full disk, a copy, a newer version."""

import json
import os
import shutil
import subprocess

import pytest

from raylth.cli.sweep import main
from raylth.stages import Graph, make_plan, run_plan, scan
from raylth.store import NewerStore, Store, fingerprint
from tests.conftest import tiny_sweep
from tests.faults.conftest import assert_undisturbed

HARMS = ("flip", "truncate", "remove")


def small_plan():
    sparse = {"arms": ["lth", "permuted"], "sparsities": [0.5], "rewinds": [1]}
    return make_plan(
        tiny_sweep(data={"name": "digits", "num_train": 200, "num_test": 50}, match={"epochs": [4]}, sparse=sparse)
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    plan, store = small_plan(), Store(tmp_path_factory.mktemp("small"))
    assert not run_plan(plan, store).errors
    return plan, store


def harm(path, how):
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "truncate":
        path.write_bytes(data[:-1])
    else:
        path.unlink()


@pytest.mark.parametrize("how", HARMS)
def test_every_file_in_turn_is_named_set_aside_and_made_again(small, tmp_path, how):
    """Of the stages, only the one that made the file is computed again."""
    plan, expected = small
    store = Store(tmp_path / "store")
    shutil.copytree(expected.root.path, store.root.path)
    owner = {key: stage for stage in plan.stages for key in stage.produces}
    files = sorted(path.relative_to(store.root.path) for path in store.root.path.glob("artefacts/*/*/*"))
    assert len(files) > 2 * len(owner)
    aside = 0
    for file in files:
        harm(store.root.path / file, how)
        key, notes, computed = file.parts[2], [], []
        graph = scan(plan, store, notes.append)
        if how == "remove" and file.name == "MANIFEST.json":
            assert not notes, "without its manifest it was never there"
        else:
            assert len(notes) == 1
            assert key[:12] in notes[0]
            assert file.name in notes[0]
            aside += 1
            assert len(list((store.root.path / "broken").iterdir())) == aside, "set aside, not deleted"
        assert [k for k, state in graph.states.items() if state != "done"] == [owner[key].key]
        run_plan(plan, store, computed.append)
        assert [stage.key for stage in computed] == [owner[key].key]
    assert_undisturbed(small, store)


def test_a_copied_store_resumes(small, tmp_path):
    plan, expected = small
    shutil.copytree(expected.root.path, tmp_path / "elsewhere")
    assert scan(plan, Store(tmp_path / "elsewhere")).finished


def test_a_store_of_a_newer_version_is_refused_with_both_versions(small, tmp_path, monkeypatch, capsys):
    plan, expected = small
    shutil.copytree(expected.root.path, tmp_path / "store")
    store = Store(tmp_path / "store")
    key = plan.stages[0].key
    manifest = store._manifest(key)
    body = {name: value for name, value in manifest.items() if name != "sha256"} | {"schema": 7}
    (store.folder(key).path / "MANIFEST.json").write_text(json.dumps({"sha256": fingerprint(body), **body}))
    with pytest.raises(NewerStore, match=r"schema 7; this one reads up to 1"):
        scan(plan, store)
    config = plan.config.model_dump_json(exclude_defaults=True)
    (tmp_path / "sweep.yaml").write_text(config)
    assert main([str(tmp_path / "sweep.yaml"), f"storage={store.root}"]) == 2
    assert "upgrade it" in capsys.readouterr().err


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 2 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_reported_and_the_sweep_resumes_when_there_is_space(small, tiny_disk):
    plan, _ = small
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"0" * (2**21 - 100_000))
    store = Store(tiny_disk / "store")
    graph: Graph = run_plan(plan, store)
    assert any("No space left on device" in error for error in graph.errors.values()), graph.errors
    done = [key for key, state in graph.states.items() if state == "done"]
    assert done, "what fitted is there"
    assert not list(store.root.path.rglob("*.tmp")), "nothing half-written is left"
    ballast.unlink()
    computed = []
    graph = run_plan(plan, store, computed.append)
    assert not graph.errors
    assert not {stage.key for stage in computed} & set(done), "what was finished is not computed again"
    assert_undisturbed(small, store)
