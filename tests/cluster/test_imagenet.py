"""The ImageNet path end to end: folder, .beton files, FFCV in Ray workers, ResNet-50, IMP, matching, arms, top-5."""

import subprocess
import sys
from pathlib import Path

import pytest

from raylth.cli import data as command
from raylth.core.data.streamed.loaders import is_installed
from raylth.report import load_curves, load_results
from tests.pictures import write_pictures

SWEEP = Path(__file__).parents[2] / "sweeps/imagenet_smoke.yaml"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("beton")
    write_pictures(source, 240, 80, classes=10)
    assert command.main(["imagenet", str(source), str(target), "--max-side", "160", "--workers", "2"]) == 0
    return target


@pytest.mark.skipif(not is_installed("ffcv"), reason="FFCV is not installed: make ffcv")
def test_the_smoke_sweep_ends_with_a_report(converted, tmp_path):
    words = [sys.executable, "-m", "raylth.sweep", str(SWEEP), f"data.root={converted}", f"storage={tmp_path}/store"]
    words += ["sparse.sparsities=[0.36]", "dense.epochs=1", "dense.warmup_epochs=0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FFCV is not installed" not in done.stdout
    rows = load_results(tmp_path / "store")
    assert (rows["status"] == "done").all()
    assert rows.query("stage == 'sparse'").groupby("arm").size().to_dict() == {"lth": 1, "naive": 1, "permuted": 1}
    assert rows["test_top5"].between(rows["test_accuracy"], 100).all()
    assert (rows["test_top5"] > rows["test_accuracy"]).any()
    assert set(rows["model"]) == {"resnet50"}
    assert set(rows["loader"]) == {"ffcv"}, "what decoded the images"
    assert load_curves(tmp_path / "store")["train_loss"].notna().all()
    assert list((tmp_path / "store/runs").glob("*/report/report.html"))
    again = subprocess.run(words, capture_output=True, text=True, timeout=100, check=True)
    assert "nothing to train" in again.stdout


def test_files_that_are_not_there_are_one_line(tmp_path):
    words = [sys.executable, "-m", "raylth.sweep", str(SWEEP), f"data.root={tmp_path}", f"storage={tmp_path}/store"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert (
        f"data.root: {tmp_path}/train.beton: no such file; `python -m raylth.data imagenet SRC DST` writes it" in done.stderr
    )
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(is_installed("dali"), reason="DALI is installed")
def test_a_loader_that_is_not_there_is_one_line(converted, tmp_path):
    words = [sys.executable, "-m", "raylth.sweep", str(SWEEP), f"data.root={converted}", f"storage={tmp_path}/store"]
    done = subprocess.run([*words, "data.loader=dali"], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "data.loader: dali is not installed on this machine (pip install 'raylth[dali]'; docs/guides/imagenet.md)" in line
