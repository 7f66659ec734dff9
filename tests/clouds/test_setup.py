"""scripts/node-setup.sh with programs of the test's own in the place of those that change a machine."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/node-setup.sh"
RECORDS = '#!/bin/sh\necho "$(basename "$0") $*" >>"{log}"\n'


@pytest.fixture
def machine(tmp_path):
    """Run the script on a machine that is already set up; returns what it asked for."""
    programs, home, there = tmp_path / "bin", tmp_path / "home", tmp_path / "home/raylth"
    for folder in (programs, home, there / "scripts", there / "dist"):
        folder.mkdir(parents=True, exist_ok=True)
    log, run = tmp_path / "log", tmp_path / "run"
    run.mkdir()
    for name in ("shutdown", "sudo", "pip"):
        (programs / name).write_text(RECORDS.format(log=log))
        (programs / name).chmod(0o755)
    (programs / "sudo").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    text = SCRIPT.read_text().replace("/run/raylth-lifetime", f"{run}/raylth-lifetime")
    (there / "scripts/node-setup.sh").write_text(text)
    (there / "dist/raylth-0-py3-none-any.whl").write_text("a wheel")
    (there / "constraints.txt").write_text("ray==2.60.0\n")
    digest = subprocess.run(
        "cat dist/*.whl constraints.txt | sha256sum", shell=True, cwd=there, capture_output=True, text=True, check=True
    ).stdout
    (there / "environment").write_text(digest)

    def start(**environment: str) -> list[str]:
        log.write_text("")
        path = f"{programs}:{os.environ['PATH']}"
        variables = {"HOME": str(home), "PATH": path, "RAYLTH_SCRATCH": "", **environment}
        subprocess.run(["sh", str(there / "scripts/node-setup.sh")], env=variables, check=True)
        return log.read_text().splitlines()

    return start


def test_a_machine_ends_itself_after_its_life_and_the_end_is_not_put_off(machine):
    assert machine() == ["shutdown -P +2880"], "48 hours, as docs/guides/cluster.md says"
    assert machine() == [], "ray up again does not make it live longer"


def test_another_life_can_be_asked_for(machine):
    assert machine(RAYLTH_LIFETIME_HOURS="5") == ["shutdown -P +300"]


def test_machines_of_ones_own_do_not_end(machine):
    assert machine(RAYLTH_LIFETIME_HOURS="0") == []
