"""What a command shares with its terminal: Ctrl-C and readers that leave, by real processes; its own name."""

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from raylth.cli import main, sweep
from raylth.common.terminal import run, typed_python
from raylth.core.models import init_model
from raylth.core.permutation import derive_spec
from raylth.store import locate

FORMS = {
    "python -m raylth.sweep": "import runpy; runpy.run_module('raylth.sweep', run_name='__main__', alter_sys=True)",
    "raylth sweep": "sys.argv.insert(1, 'sweep'); from raylth.cli.main import main; sys.exit(main())",
}


def start(form, *arguments):
    """Start the command in one of its forms; returns when Python is up, just before anything of raylth is imported."""
    code = f"import sys; print('up', flush=True); {FORMS[form]}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("delay", [0.2, 0.6, 1.2, 2.5, 6.0])
@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_before_anything_started_is_one_line(tmp_path, form, delay):
    os.mkfifo(tmp_path / "sweep.yaml")  # nobody writes to it: whatever the delay, the sweep waits for its file at last
    with start(form, tmp_path / "sweep.yaml") as process:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (errors, output, process.returncode) == ("stopped before anything was started\n", "", 130)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("option", ["--schema", "--help"])
def test_a_reader_that_leaves_is_no_error(form, option):
    with start(form, option) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_a_broken_pipe_elsewhere_is_not_hushed_up():
    def command():
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        run(command)


def test_python_is_named_as_it_is_typed(tmp_path, monkeypatch):
    python = tmp_path / "here" / ".venv" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.chdir(tmp_path / "here")
    assert typed_python() == ".venv/bin/python3"
    monkeypatch.chdir(tmp_path / "here" / ".venv" / "bin")
    assert typed_python() == "./python3", "without the folder a shell would look elsewhere"
    monkeypatch.chdir("/")
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "elsewhere")
    assert typed_python() == str(python)
    monkeypatch.setenv("PATH", f"{python.parent}:/bin")
    assert typed_python() == "python3", "its folder is on the path, as in an activated environment"


def test_the_version_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["raylth", "--version"])
    assert main.main() == 0
    assert capsys.readouterr().out == f"raylth {version('raylth')}\n"
    with pytest.raises(SystemExit, match="0"):
        sweep.main(["--version"])
    assert capsys.readouterr().out == f"raylth {version('raylth')}\n"


def test_what_a_cell_of_a_notebook_shows_is_short():
    network = init_model(0, "resnet20", num_classes=10, in_shape=(3, 32, 32))
    shown = repr(derive_spec(network, torch.randn(2, 3, 32, 32)))
    assert "groups: " in shown
    assert len(shown) < 400
    assert repr(locate("a/b")) == "DiskLocation('a/b')"
