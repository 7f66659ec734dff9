"""What a command shares with its terminal: Ctrl-C, by real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

FORMS = {
    "python -m raylth.sweep": "import runpy; runpy.run_module('raylth.sweep', run_name='__main__', alter_sys=True)",
    "raylth sweep": "sys.argv.insert(1, 'sweep'); from raylth.cli import main; sys.exit(main())",
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
