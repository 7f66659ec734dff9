"""The wheel alone: in an environment of its own, outside the checkout, it shows the finding."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LENT = ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_ADDOPTS", "PYTHONDONTWRITEBYTECODE")  # each process would compile torch anew
UV = Path(sys.executable).with_name("uv")
REDUCED = ["seeds.replicates=1", "sparse.sparsities=[0.8]", "sparse.rewinds=[10]", "sparse.arms=[lth,permuted,naive]"]


def run(*command, cwd, **environment):
    """Run a command without what a checkout or this environment would lend it."""
    kept = {name: value for name, value in os.environ.items() if name not in LENT}
    found = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two builds of wheel and sdist, one after the other."""
    folders = [tmp_path_factory.mktemp("dist") for _ in range(2)]
    for folder in folders:
        run(UV, "build", "--quiet", "--out-dir", folder, cwd=ROOT, SOURCE_DATE_EPOCH="1700000000")
    return folders


def test_builds_are_reproducible_and_have_all_files(built):
    for ending in ("whl", "tar.gz"):
        (one,), (other,) = (list(folder.glob(f"*.{ending}")) for folder in built)
        assert one.read_bytes() == other.read_bytes()
    run(sys.executable, "-m", "twine", "check", "--strict", *built[0].glob("*.whl"), *built[0].glob("*.tar.gz"), cwd=ROOT)
    (wheel,) = built[0].glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("sweeps", "notebooks"):
        for path in (ROOT / folder).iterdir():
            if path.suffix in (".yaml", ".json", ".ipynb"):
                assert f"raylth/shipped/{folder}/{path.name}" in names
    assert "raylth/py.typed" in names


def test_the_wheel_alone_shows_the_finding(built, tmp_path):
    (wheel,) = built[0].glob("*.whl")
    environment = tmp_path / "environment"
    run(UV, "venv", "--quiet", "--python", sys.executable, environment, cwd=tmp_path)
    install = (UV, "pip", "install", "--quiet", "--python", environment / "bin/python", "-c", ROOT / "constraints.txt", wheel)
    run(*install, cwd=tmp_path)
    command = environment / "bin/raylth"
    said = run(command, "quickstart", "storage=store", *REDUCED, cwd=tmp_path)
    assert "permuted" in said
    (page,) = tmp_path.glob("store/runs/*/report/report.html")
    assert "permuted" in page.read_text()
    run(command, "new", "mine", cwd=tmp_path)
    assert "mine" in run(command, "sweep", "mine.yaml", "--dry-run", cwd=tmp_path)
    where = run(environment / "bin/python", "-c", "import raylth; print(raylth.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
