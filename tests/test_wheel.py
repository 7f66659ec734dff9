"""The wheel alone: in an environment of its own, outside the checkout, it shows the finding."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from raylth.report import load_results
from tests.chromium import Chromium
from tests.report.test_page import browser

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


@pytest.fixture(scope="module")
def alone(built, tmp_path_factory):
    """An environment that has the wheel and nothing of the checkout, beside the store of a quickstart, and what that said."""
    (wheel,) = built[0].glob("*.whl")
    folder = tmp_path_factory.mktemp("alone")
    python = folder / "environment/bin/python"
    run(UV, "venv", "--quiet", "--python", sys.executable, folder / "environment", cwd=folder)
    constraints = ("-c", ROOT / "constraints.txt")
    run(UV, "pip", "install", "--quiet", "--python", python, *constraints, f"{wheel}[serve]", cwd=folder)
    return folder, run(folder / "environment/bin/raylth", "quickstart", "storage=store", *REDUCED, cwd=folder)


def test_the_wheel_alone_shows_the_finding(alone):
    folder, said = alone
    assert "permuted" in said
    (page,) = folder.glob("store/runs/*/report/report.html")
    assert "permuted" in page.read_text()
    command = folder / "environment/bin/raylth"
    run(command, "new", "mine", cwd=folder)
    assert "mine" in run(command, "sweep", "mine.yaml", "--dry-run", cwd=folder)
    where = run(folder / "environment/bin/python", "-c", "import raylth; print(raylth.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(folder / "environment")


def test_the_wheel_alone_shows_its_page_in_a_browser(alone, tmp_path):
    folder, _ = alone
    found = load_results(folder / "store").query("stage == 'sparse'").groupby("arm")["test_accuracy"].mean()
    words = [folder / "environment/bin/raylth", "serve", "store"]
    kept = {name: value for name, value in os.environ.items() if name not in LENT}
    with subprocess.Popen(words, cwd=folder, env=kept, stdout=subprocess.PIPE, text=True) as server:
        chromium = Chromium(browser(), tmp_path)
        try:
            chromium.open(server.stdout.readline().strip())
            chromium.wait_for("document.querySelector('#sweeps a[href^=\"runs/\"]')")
            chromium.evaluate("document.querySelector('#sweeps a[href^=\"runs/\"]').click()")
            chromium.wait_for("document.querySelector('#section-accuracy .plot')?.data")
            drawn = chromium.evaluate(
                "Object.fromEntries(document.querySelector('#section-accuracy .plot').data.map((t) => [t.name, [...t.y]]))"
            )
            problems = chromium.problems
        finally:
            chromium.close()
            server.send_signal(signal.SIGINT)
    assert server.returncode == 0
    assert problems == []
    assert {arm: drawn[arm] for arm in found.index} == {arm: [pytest.approx(mean)] for arm, mean in found.items()}
