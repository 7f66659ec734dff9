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


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("options", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_writes_to_a_terminal_that_was_closed_do_not_end_a_command(options, stream):
    """It is no process of the terminal's session, so no SIGHUP comes: only the writes notice."""
    ours, theirs = os.openpty()
    code = (
        "import sys, threading; from raylth.common import terminal\n"
        "def say():\n"
        f"    print('x' * 5000, file=sys.{stream}, flush=True)\n"
        "def command():\n"
        f"    assert sys.{stream}.isatty()\n"
        "    say(); input(); say()\n"
        "    thread = threading.Thread(target=say); thread.start(); thread.join(); say()\n"
        f"    print('not flushed', file=sys.{stream})\n"
        "    return 7\n"
        "terminal.leave(terminal.run(command))"
    )
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    streams = {"stdin": subprocess.PIPE, stream: theirs, other: subprocess.PIPE}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, *options, "-c", code], text=True, env=environment, **streams) as process:
        os.close(theirs)
        seen = b""
        while len(seen) < 5000:
            seen += os.read(ours, 5000)
        os.close(ours)
        said, complaint = process.communicate("\n", timeout=60)
    assert process.returncode == 7, (said, complaint)
    assert not said
    assert not complaint


def test_what_is_written_to_a_terminal_is_what_it_was():
    ours, theirs = os.openpty()
    code = (
        "import sys; from raylth.common import terminal\n"
        "def kind():\n"
        "    return sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stdout.write_through\n"
        "before = kind(), sys.stdout\n"
        "def command():\n"
        "    print('Änderung', kind() == before[0], sys.stdout is before[1])\n"
        "    return 0\n"
        "terminal.leave(terminal.run(command))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:replace"}
    subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True, env=environment, timeout=60)
    assert os.read(ours, 1000).decode() == "Änderung True False\r\n"
    os.close(theirs)
    os.close(ours)
