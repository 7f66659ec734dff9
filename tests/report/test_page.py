"""The report: its statistics against SciPy, its page in a real browser, its files, and runs that have nothing to show."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raylth.report import (
    beside_paper,
    ensembles_beside_paper,
    find_run,
    findings,
    load_barriers,
    load_results,
    paired_differences,
    paper_accuracy,
    write_report,
)
from raylth.report.command import main
from raylth.store import locate
from raylth.store.tables import write_table
from tests.report.test_recipe import TABLE_5, manifest_of
from tests.report.test_report import row

CONSOLE = "from raylth.cli.main import entry; entry()"
ACCURACY = {"lth": (66.0, 67.0, 68.5), "permuted": (60.0, 62.0, 61.0), "naive": (52.0, 55.0, 51.0)}
IDENTITY = {"dataset": "cifar10", "model": "resnet20", "sweep": "r"}
MANIFEST = {
    "run": "r-1", "written": "2026-11-21T00:00:00", "python": "3.11", "git_commit": None, "packages": {"torch": "2"},
    "hardware": {"system": "Linux", "cpus": 2},
    "config": {"name": "r", "data": {"name": "cifar10"}, "model": {"name": "resnet20"}},
    "stages": {"dense": {"done": 2}, "sparse": {"done": 9, "failed": 1, "waiting": 4}},
    "failures": [
        {"stage": "plane(replicate=0)", "state": "failed", "error": "RuntimeError: <no> & nothing", "blocks": 2}
    ],
    "num_failures": 1,
}  # fmt: skip


def rows(sparsity=0.9, rewind=10):
    arms = [
        row(**IDENTITY, arm=arm, replicate=r, sparsity=sparsity, rewind_epoch=rewind, test_accuracy=value, epochs=190,
            match_epoch=200 if arm == "permuted" else None)
        for arm, values in ACCURACY.items()
        for r, value in enumerate(values)
    ]  # fmt: skip
    dense = [row(**IDENTITY, stage="dense", arm=None, network=n, replicate=0, epochs=200, test_accuracy=92.0) for n in "AB"]
    bad = row(**IDENTITY, arm="naive", replicate=3, status="failed", error="RuntimeError: <no> & nothing", test_accuracy=None)
    return [*arms, *dense, bad]


@pytest.fixture
def run(tmp_path):
    store = locate(tmp_path)
    write_table(store, "results", "r-1", [*rows(), *rows(0.8, 20)], MANIFEST)
    for dataset in ("curves", "permutations", "barriers"):
        write_table(store, dataset, "r-1", [], MANIFEST)
    folder = store / "runs/r-1"
    (folder / "manifest.json").write(json.dumps(MANIFEST).encode())
    return folder


def test_differences_are_paired_and_their_interval_is_that_of_a_paired_t_test(run):
    found = paired_differences(load_results(run))
    assert len(found) == 2
    expected = stats.ttest_rel(ACCURACY["permuted"], ACCURACY["naive"]).confidence_interval(0.95)
    for cell in found.itertuples():
        assert cell.difference == pytest.approx(np.mean(ACCURACY["permuted"]) - np.mean(ACCURACY["naive"]))
        assert (cell.low, cell.high, cell.n) == pytest.approx((expected.low, expected.high, 3))


def test_one_pair_has_a_difference_and_no_interval(run):
    results = load_results(run)
    found = paired_differences(results[(results["replicate"] == 0) & (results["sparsity"] == 0.8)])
    assert found["difference"].tolist() == [8.0]
    assert found[["low", "high"]].isna().all(axis=None)


def test_a_pair_needs_both(run):
    results = load_results(run)
    assert paired_differences(results[results["arm"] != "naive"]).empty
    without = results[~((results["arm"] == "naive") & (results["replicate"] == 1))]
    assert paired_differences(without)["n"].tolist() == [2, 2]


def test_the_papers_cells_stand_beside_ours(run):
    results, manifest = load_results(run), manifest_of(TABLE_5)
    paper = paper_accuracy()
    beside = beside_paper(results, manifest).set_index(["sparsity", "label"])
    assert len(beside) == 6
    theirs = paper[(paper["table"] == 5) & (paper["sparsity"] == 0.9) & (paper["rewind_epoch"] == 10) & (paper["width"] == 1)]
    for arm, mean in zip(theirs["arm"], theirs["mean"], strict=True):
        assert beside.loc[(0.9, arm), "paper_mean"] == mean
        assert beside.loc[(0.9, arm), "difference"] == pytest.approx(np.mean(ACCURACY[arm]) - mean)
    short = results.assign(epochs=results["epochs"].where(results["stage"] != "dense", 20))
    assert beside_paper(short, manifest).empty, "20 epochs are not the paper's 200"
    assert beside_paper(results.assign(dataset="mnist1d"), manifest).empty


def test_the_package_has_the_papers_numbers_whole():
    paper = paper_accuracy()
    assert len(paper) == 692
    late = paper[paper["metric"] == "top1"].pivot_table(
        index=["table", "width", "sparsity", "rewind_epoch", "match_epoch"], columns="arm", values="mean"
    )
    both = late.dropna(subset=["permuted", "naive"])
    assert (both["permuted"] > both["naive"]).mean() > 0.99


def test_findings_are_sentences_with_the_numbers(run):
    said = findings(load_results(run), load_barriers(run))
    assert said[0].startswith("permuted beats naive by 8.3 points on average (95 % confidence interval 4.5 to 12.1, n = 3")
    assert "It is ahead in 2 of 2 cells" in said[0]
    assert "in 2 of them the cell's own 95 % interval leaves out 0" in said[0]
    assert "naive at sparsity 0.9, k = 0, replicate 3 (failed)" in said[0]
    (share,) = [sentence for sentence in said if "makes up for" in sentence]
    assert share.startswith("permuted makes up for 57 % of the distance from naive to lth (95 % interval")


def test_the_page_and_all_its_files(run):
    page = write_report(run, run / "report").read().decode()
    assert "13 of 16" not in page
    assert "11 of 16 stages are done" in page
    assert "plane(replicate=0): RuntimeError: &lt;no&gt; &amp; nothing (blocks 2 more)" in page, "as text, not as markup"
    assert not re.search(r"""src=["'](?!data:)|href=["'](?:\w+:|/)""", page), (
        "it loads nothing, and links only to files beside it"
    )
    files = (run / "report").files()
    for figure in ("accuracy_vs_rewind", "accuracy_vs_sparsity", "difference"):
        assert (run / f"report/figures/{figure}.png").read()[:4] == b"\x89PNG"
        assert files[f"figures/{figure}.svg"] > 5000
    assert "naive at sparsity 0.9, k = 0, replicate 3 (failed)" in page, "the lost network is named"
    assert "does not say data.num_train" in page, "a manifest without settings is no ground for a comparison"
    for table in ("accuracy", "effects", "difference", "recovered"):
        frame = pd.read_csv(run.path / f"report/tables/{table}.csv")
        latex = (run / f"report/tables/{table}.tex").read().decode()
        body = latex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
        assert len(body) == len(frame)
        assert {line.count("&") for line in body} == {len(frame.columns) - 1}
        assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1


@pytest.mark.parametrize("left", [[], ["dense"], ["failed"]])
def test_a_run_with_little_to_show_says_so(run, left):
    kept = [one for one in rows() if one["stage"] in left or one["status"] in left]
    write_table(run.parent.parent, "results", "r-1", kept, MANIFEST)
    page = write_report(run, run / "report").read().decode()
    assert "no sparse network has finished" in page
    assert "Traceback" not in page


def browser():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        assert not os.environ.get("CI"), "CI installs a browser"
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


@pytest.mark.parametrize("size", ["1200,900", "390,844"], ids=["desk", "phone"])
def test_the_page_in_a_browser(run, tmp_path, size):
    page = write_report(run, run / "report")
    picture = tmp_path / "page.png"
    ran = subprocess.run(
        [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--screenshot={picture}",
         f"--window-size={size}", "--host-resolver-rules=MAP * ~NOTFOUND", f"file://{page}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "CONSOLE" not in ran.stderr, ran.stderr
    from matplotlib.image import imread

    pixels = imread(picture)[:, :, :3]
    assert len(np.unique((pixels * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 100, "letters, lines and arms in colour"


def test_the_command(run, tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report/report.html")
    assert main([str(run), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere/report.html").exists()
    assert main([str(tmp_path / "nothing")]) == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("form", [["-m", "raylth.report"], ["-c", CONSOLE, "report"]], ids=["python -m", "console script"])
def test_ctrl_c_ends_a_report_that_is_written_again_and_again(run, form):
    words = [sys.executable, *form, str(run), "--watch", "600"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"{run / 'report/report.html'}\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def test_a_sweep_that_asks_for_everything_has_every_figure_and_table(quickstart, tmp_path):
    page = write_report(quickstart, locate(tmp_path)).read().decode()
    assert "Not drawn" not in page
    empty = "What the permutation makes up for: no cell&#39;s distance is significantly above 0."
    assert re.findall("<strong>Not listed.</strong> (.*?)</p>", page) in ([], [empty])
    assert "<li>mlp on mnist1d, which the paper has not" in page
    assert "<h2>Beside the paper" not in page
    said = re.findall("<li>(.*?)</li>", page)
    assert any("π(mask_A) and B&#39;s own mask share" in sentence for sentence in said)
    assert any(sentence.startswith("Between A and B, width 0.25, the test error barrier is") for sentence in said)
    assert len(list((tmp_path / "figures").glob("*.svg"))) == 11


def test_a_run_is_found_by_its_sweeps_name(run, tmp_path):
    assert str(find_run(tmp_path, "r")) == str(run)
    with pytest.raises(FileNotFoundError, match=r"no run of the sweep 'q' here; there are: r"):
        find_run(tmp_path, "q")


def test_ensembles_of_table_1_stand_beside_the_papers():
    ours = pd.DataFrame(
        [
            {"dataset": "cifar10", "model": "resnet20", "width": 1.0, "sparsity": 0.9, "arm": arm, "members": members,
             "rewind_epoch": 10, "mean_accuracy": 90.0, "ensemble_accuracy": 92.0, "disagreement": 0.1, "kl": 0.3, "js": 0.1}
            for arm, members in (("imp", 5), ("permuted", 3))
        ]
    )  # fmt: skip
    dense = pd.DataFrame([row(**IDENTITY, stage="dense", arm=None, network="A", replicate=0, epochs=200)])
    manifest = manifest_of(TABLE_5)
    assert ensembles_beside_paper(ours, dense.assign(epochs=5), manifest).empty, "5 epochs are not the paper's 200"
    beside = ensembles_beside_paper(ours, dense, manifest).set_index("measure")
    assert set(beside["set"]) == {"imp"}, "three members are not the paper's five"
    assert beside.loc["ensemble_accuracy", ["ours", "paper"]].tolist() == [92.0, 93.25]
    assert beside.loc["ensemble_accuracy", "difference"] == pytest.approx(-1.25)
    assert beside.loc["kl", "difference"] == pytest.approx(0.3 - 0.352)


def test_one_bad_run_does_not_keep_the_others_from_their_report(run, tmp_path, capsys):
    bad = tmp_path / "runs/a-0"
    bad.mkdir(parents=True)
    (bad / "manifest.json").write_text("{")
    assert main([str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "a-0: no report:" in told.err
    assert str(run / "report/report.html") in told.out
