"""The JSON files of a run: what is not a sweep's is named in one line."""

import json

import pytest

from raylth.report import load_manifest
from raylth.report.results import find_run
from raylth.report.searches import load_search
from raylth.store import locate
from raylth.store.run_files import MANIFEST, STATUS, RunFileBroken, is_run, read_run_file
from tests.serve.stores import manifest_of, status_of


@pytest.mark.parametrize(("kinds", "content"), [(MANIFEST, manifest_of("a-1")), (STATUS, status_of("running")), (STATUS, {})])
def test_what_a_sweep_writes_is_read(tmp_path, kinds, content):
    place = locate(tmp_path) / "file.json"
    place.write(json.dumps(content).encode())
    assert read_run_file(place, kinds) == content


@pytest.mark.parametrize("kinds", [MANIFEST, STATUS])
def test_no_field_may_be_another_kind(tmp_path, kinds):
    place = locate(tmp_path) / "file.json"
    for name in kinds:
        for value in (None, "text", 1, True, float("nan"), [1], {"a": None}, {"a": {"b": "c"}}):
            is_fine = kinds[name][1](value)
            place.write(json.dumps({name: value}).encode())
            if is_fine:
                assert read_run_file(place, kinds) is not None
            else:
                with pytest.raises(RunFileBroken) as caught:
                    read_run_file(place, kinds)
                assert str(caught.value).startswith(f"{place}: {name} should be {kinds[name][0]}, found ")
        assert not kinds[name][1](None) or name == "left_seconds"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"config": "a', "not whole JSON (Unterminated string starting at: line 1 column 12 (char 11))"),
        (b"", "not whole JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"\xff\xfe\x00", "not whole JSON ("),
        (b"[1]", "should be an object, found [1]"),
        (b'{"config": null}', "config should be an object, found null"),
        (b"{}", "has no config"),
    ],
)
def test_a_manifest_that_is_harmed_is_named_wherever_it_is_read(tmp_path, content, text):
    run = locate(tmp_path) / "runs" / "a-1"
    (run / "manifest.json").write(content)
    with pytest.raises(ValueError, match=r"manifest\.json") as caught:
        load_manifest(run)
    assert str(caught.value).startswith(f"{run}/manifest.json: {text}")
    assert "\n" not in str(caught.value)
    (locate(tmp_path) / "runs" / "b-2" / "manifest.json").write(json.dumps(manifest_of("b-2")).encode())
    with pytest.warns(UserWarning, match=r"a-1/manifest\.json: .*: left out"):
        assert find_run(tmp_path, "b").name == "b-2"


def test_a_search_that_is_half_written_is_named(tmp_path):
    (locate(tmp_path) / "search.json").write(b'{"studies": [')
    with pytest.raises(RunFileBroken, match=r"search\.json: not whole JSON"):
        load_search(locate(tmp_path))


def test_a_folder_is_a_runs_where_a_sweep_has_written(tmp_path):
    place = locate(tmp_path)
    (place / "afile.txt").write(b"")
    (place / "notes" / "readme.txt").write(b"")
    assert not any(is_run(place / name) for name in ("none", "afile.txt", "notes"))
    for name in ("manifest.json", "status.json", "artefacts.json", "settled.json"):
        (place / f"of-{name}" / name).write(b"")
        assert is_run(place / f"of-{name}")
