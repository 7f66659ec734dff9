"""`raylth new` and `raylth quickstart`: a sweep file of one's own, and the finding, from the package's files."""

import errno
import json
import os
from pathlib import Path

import pytest
import yaml

from raylth.cli import new, quickstart
from raylth.common.shipped import shipped, sweep_names
from raylth.config.load import read_sweep
from raylth.config.sweep import SweepConfig


@pytest.mark.parametrize("source", sweep_names())
def test_the_new_file_has_the_settings_of_the_old_one(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new.main(["mine", "--from", source]) == 0
    assert "raylth sweep mine.yaml" in capsys.readouterr().out
    ours, theirs = (yaml.safe_load(path.read_text()) for path in (Path("mine.yaml"), shipped("sweeps") / f"{source}.yaml"))
    assert ours == {**theirs, "name": "mine"}
    assert list(ours) == list(theirs)


def test_every_setting_has_its_description(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new.main(["mine"]) == 0
    lines = Path("mine.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if line and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("#"), line
    assert "# T: epochs of dense training (paper: 200 on CIFAR)." in (line.strip() for line in lines)
    assert read_sweep("mine.yaml").name == "mine"
    schema = json.loads(Path("raylth-schema.json").read_text())
    assert schema == json.loads(json.dumps(SweepConfig.model_json_schema()))
    assert lines[0].endswith("$schema=raylth-schema.json")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["Mine"], "NAME: 'Mine' may have lower-case letters"),
        (["../mine"], "NAME: '../mine' may have"),
        (["mine", "--from", "quickstrat"], "no sweep 'quickstrat', did you mean 'quickstart'?"),
    ],
)
def test_what_is_refused_is_one_line(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new.main(arguments) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("precious")
    assert new.main(["mine"]) == 2
    assert capsys.readouterr().err == "mine.yaml is there already: choose another name, or remove it\n"
    assert Path("mine.yaml").read_text() == "precious"


def test_a_schema_that_differs_is_left_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    schema = Path("raylth-schema.json")
    schema.write_text("precious")
    assert new.main(["mine"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("raylth-schema.json is there already with other content")
    assert said.count("\n") == 1
    assert schema.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == [schema.name]
    schema.unlink()
    for name in ("mine", "other"):
        assert new.main([name]) == 0, "the same schema is no obstacle"
    assert json.loads(schema.read_text())


@pytest.mark.parametrize("which", ["raylth-schema.json", "mine.yaml"])
def test_what_cannot_be_written_leaves_nothing_half_written(which, tmp_path, monkeypatch, capsys):
    def full(path, data):
        if path.name == which:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f".{path}.tmp")
        path.write_bytes(data)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(new, "write_atomically", full)
    assert new.main(["mine"]) == 2
    assert capsys.readouterr().err == f"{which}: No space left on device\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_schemas_place_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("raylth-schema.json").mkdir()
    assert new.main(["mine"]) == 2
    assert capsys.readouterr().err == "raylth-schema.json: Is a directory\n"
    assert not Path("mine.yaml").exists()


def test_the_quickstart_is_the_packages_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert quickstart.main(["--dry-run", "seeds.replicates=1", "sparse.sparsities=[0.8]"]) == 0
    assert "quickstart" in capsys.readouterr().out
