"""Signals and ends of the sweep's own process: it ends in order, says so, and others know."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys

from raylth.cli.status import main as status
from tests.faults.conftest import wait_until


def status_of(sweep):
    (file,) = (sweep.store.root.path / "runs").glob("*/status.json")
    return json.loads(file.read_text())


def has_begun(sweep):
    return lambda: sweep.num_epochs() >= 3


def test_nohup_is_respected_and_sigterm_ends_the_sweep_in_order(start_sweep):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        sweep = start_sweep()
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until(has_begun(sweep), "training")
    sweep.process.send_signal(signal.SIGHUP)
    trained = sweep.num_epochs()
    wait_until(lambda: sweep.num_epochs() > trained + 5, "training after the signal")
    assert sweep.process.poll() is None
    sweep.process.send_signal(signal.SIGTERM)
    output, _ = sweep.process.communicate(timeout=60)
    assert sweep.process.returncode == 130, output
    assert output.count("stopped (SIGTERM): ") == 1, output
    assert "To resume, run the same command again" in output
    assert "Traceback" not in output
    assert (status_of(sweep)["state"], status_of(sweep)["note"]) == ("stopped", "stopped (SIGTERM)")


def test_a_terminal_that_is_closed_ends_the_sweep_in_order(start_sweep, capsys):
    sweep = start_sweep()
    sweep.stop()  # only its command is needed
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
         "os.execv(sys.argv[1], sys.argv[1:])", *sweep.command],
        stdin=follower, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    try:
        seen = os.open(os.devnull, os.O_WRONLY)
        begun = has_begun(sweep)
        while not begun():
            with contextlib.suppress(OSError):
                os.write(seen, os.read(leader, 65536))
            assert process.poll() is None
        os.close(leader)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    told = status_of(sweep)
    assert told["state"] == "stopped"
    assert told["note"] == "stopped (SIGHUP: its terminal was closed)"
    assert status([str(sweep.store.root)]) == 0
    assert "its terminal was closed" in capsys.readouterr().out
