"""The installation script: by uv where that works, by pip where it does not."""

import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "installed"
version = "1"

[project.optional-dependencies]
more = ["iniconfig"]
"""


@pytest.fixture
def project(tmp_path):
    """A project that takes a second to install, with a virtual environment."""
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "installed.py").write_text("")
    (tmp_path / "constraints.txt").write_text("iniconfig==2.1.0\n")
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    venv.create(tmp_path / ".venv", with_pip=True)
    return tmp_path


def install(project, *extras):
    command = ["sh", "scripts/install.sh", ".venv", *extras]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    listed = [project / ".venv/bin/python", "-m", "pip", "list", "--format", "json"]
    found = json.loads(subprocess.run(listed, capture_output=True, text=True, check=True).stdout)
    (record,) = (project / ".venv").glob("lib/*/site-packages/installed-1.dist-info/INSTALLER")
    return {package["name"]: package["version"] for package in found}, record.read_text().strip()


def test_all_extras_can_be_installed_with_the_constraints_and_together(tmp_path):
    words = [Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--all-extras", "-c", "constraints.txt"]
    found = subprocess.run(
        [*words, "-o", tmp_path / "resolved.txt", "pyproject.toml"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "error sending request" in found.stderr or "Failed to fetch" in found.stderr:
        pytest.skip("the package index is not to be had")
    assert found.returncode == 0, found.stderr
    resolved, pinned = (
        dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
        for text in ((tmp_path / "resolved.txt").read_text(), (ROOT / "constraints.txt").read_text())
    )
    direct = re.findall(r'"([\w.-]+)(?:\[[\w,]+\])?[><=]', (ROOT / "pyproject.toml").read_text())
    named = {name.lower().replace("_", "-") for name in direct} & resolved.keys()
    assert len(named) > 30
    assert {name: resolved[name] for name in named & pinned.keys()} == {name: pinned[name] for name in named & pinned.keys()}


def test_uv_installs_where_it_can(project):
    (project / ".venv/bin/uv").symlink_to(Path(sys.executable).with_name("uv"))
    packages, installer = install(project, "more")
    assert installer == "uv"
    assert packages["iniconfig"] == "2.1.0", "by the constraints"


def test_pip_installs_where_uv_fails(project):
    uv = project / ".venv/bin/uv"
    uv.write_text("#!/bin/sh\necho no index >&2\nexit 2\n")
    uv.chmod(0o755)
    packages, installer = install(project)
    assert installer == "pip"
    assert "iniconfig" not in packages
