"""The report's page as a reader has it: links, tables and figures on a telephone, what is missing, learning curves."""

import html
import json
import re
import subprocess
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from raylth.report import accuracy_vs_rewind, load_curves, load_results, write_report
from raylth.report.curves import learning_curves
from raylth.report.display import as_view
from raylth.report.style import SINGLE, WIDE, new_figure
from raylth.store import locate
from raylth.store.tables import write_table
from tests.report import test_page
from tests.report.test_page import MANIFEST, browser, rows

run = test_page.run  # the fixture

COVER = 48  # pixels before a region's end within which its shadow fades
MEASURE = """
<iframe id="f" style="border: 0; width: WIDTHpx; height: 30000px" srcdoc="PAGE"></iframe>
<script>
document.getElementById("f").onload = (event) => {
  const page = event.target.contentDocument;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const box = (element) => { const r = element.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
  const found = {
    page: page.documentElement.scrollWidth,
    images: [...page.querySelectorAll("figure img")].map((image) => ({width: box(image)[2], natural: image.naturalWidth,
      link: [...image.closest("figure").querySelectorAll("a")].map((a) => a.getAttribute("href"))})),
    scrolls: [...page.querySelectorAll(".scroll")].map((region) => ({box: box(region), overflows:
      region.scrollWidth - region.clientWidth, label: region.ariaLabel, tab: region.tabIndex,
      is_figure: !!region.querySelector("img")})),
    wide: [...page.querySelectorAll("table")].filter((t) => !t.closest(".scroll")).length,
  };
  const said = document.createElement("pre"); said.id = "found"; said.hidden = true;
  said.textContent = JSON.stringify(found); document.body.append(said);
};
</script>
"""


@pytest.fixture(scope="module")
def whole(quickstart, tmp_path_factory):
    """The page of a sweep that asks for everything, in a folder that is no store."""
    return write_report(quickstart, locate(tmp_path_factory.mktemp("whole")))


def measured(page, tmp_path, width):
    """Lay the page out at a width, all tables open, in Chromium; returns what it measured, and the pixels."""
    wrapper, picture = tmp_path / "wrapper.html", tmp_path / "page.png"
    text = page.read().decode()
    inside = MEASURE.replace("WIDTH", str(width)).replace("PAGE", html.escape(text))
    wrapper.write_text(f"<!doctype html><meta charset=utf-8><body style='margin: 0'>{inside}")
    common = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,12000",
    ]  # fmt: skip
    dumped, _ = (
        subprocess.run([*common, what, f"file://{wrapper}"], capture_output=True, text=True, timeout=120, check=True)
        for what in ("--dump-dom", f"--screenshot={picture}")
    )
    found = json.loads(html.unescape(re.search(r'<pre id="found"[^>]*>(.*?)</pre>', dumped.stdout, re.DOTALL)[1]))
    return found, imread(picture)[:, :, :3].mean(axis=2)


def addresses(page):
    return [unquote(html.unescape(found)) for found in re.findall(r'href="([^"#][^"]*)"', page)]


def test_every_file_that_the_page_names_is_a_link_that_works(quickstart, whole):
    report = quickstart / "report"
    found = addresses(write_report(quickstart, report).read().decode())
    assert {"tables/accuracy.csv", "tables/accuracy.tex", "figures/planes.svg", "figures/planes.png"} <= set(found)
    assert f"../../../results/{quickstart.name}.parquet" in found
    for address in found:
        assert not re.match(r"\w+:|/", address), "relative, so that the folder can be moved"
        assert (report.path / address).is_file(), address
    written = {str(path.relative_to(report.path)) for path in report.path.rglob("*.*")} - {"report.html"}
    assert written == {address for address in found if not address.startswith("..")}
    elsewhere = addresses(whole.read().decode())
    assert elsewhere, "figures and tables go with it"
    for address in elsewhere:
        assert (whole.parent.path / address).is_file(), address
        assert not address.startswith(".."), "data that a report elsewhere is not beside"


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_figures_and_tables_are_read_at_every_width(whole, tmp_path, width):
    found, pixels = measured(whole, tmp_path, width)
    assert found["page"] <= width, "the page itself does not scroll sideways"
    assert len(found["images"]) == 11
    for image in found["images"]:
        assert image["width"] >= 0.84 * image["natural"], "letters of 8 points are not below 9 pixels"
        assert {link.rpartition(".")[2] for link in image["link"]} == {"svg", "png"}
    assert not found["wide"]
    for region in found["scrolls"]:
        assert region["tab"] == 0
        assert region["label"]
    inside = [region for region in found["scrolls"] if region["box"][3] > 20 and sum(region["box"][1::2]) < 11900]
    for kind in (True, False):
        cut = [region for region in inside if region["overflows"] > COVER and region["is_figure"] is kind]
        assert cut or width > 390, "something is cut off on a telephone"
        for region in cut:
            x, y, across, down = (round(value) for value in region["box"])
            edge, before = (np.median(pixels[y + 5 : y + down - 5, x + across - far]) for far in (2, 40))
            assert edge < before - 0.15, "a shadow says that there is more"
            start = np.median(pixels[y + 5 : y + down - 5, x + 1])
            assert start > 0.95, "and none where there is nothing more"
    for region in inside:
        if not region["overflows"]:
            x, y, across, down = (round(value) for value in region["box"])
            assert np.median(pixels[y + 5 : y + down - 5, x + across - 2]) > 0.95


def test_what_was_not_drawn_is_one_line_at_the_end(run, tmp_path):
    page = write_report(run, run / "report").read().decode()
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert headings == [
        "Findings", "Accuracy against the rewind point", "What the permutation gains", "Accuracy against sparsity",
        "Accuracy",
        "The planned contrasts", "The planned contrasts, cell by cell", "What the permutation makes up for",
        "Not set beside the paper", "Stages", "Not done", "Manifest",
    ]  # fmt: skip
    drawn, listed = re.findall(r'<p class="note missing">(.*?)</p>', page)
    assert "The plane through three networks: no plane has been measured (analyses.planes asks for them);" in drawn
    assert "Masks: analyses.overlap asks for them;" in listed


def test_figures_have_one_of_two_widths_and_names_are_for_people(whole):
    page = whole.read().decode()
    widths = [int(found) for found in re.findall(r'<img [^>]*?width="(\d+)"', page)]
    assert len(widths) == 11
    assert set(widths) == {round(96 * SINGLE), round(96 * WIDE)}
    shown = re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)  # settings as they are written
    assert "π(A)" in shown
    assert not re.search(r"\bpi(\^-1)?\(", shown)


def test_what_is_not_drawn_any_more_leaves_no_file(run):
    (run / "report/figures/planes.png").write(b"old")
    write_report(run, run / "report")
    assert not (run / "report/figures/planes.png").exists()


def test_what_failed_stands_before_everything_else(run):
    stages = {"dense": {"done": 2}, "sparse": {"done": 9, "failed": 4, "diverged": 1, "blocked": 1200}}
    failures = [
        {"stage": f"sparse(replicate={r})", "state": "failed", "error": f"RuntimeError: {r} {'x ' * 300}", "blocks": 0}
        for r in range(5)
    ]
    manifest = {**MANIFEST, "stages": stages, "failures": failures, "num_failures": 5}
    (run / "manifest.json").write(json.dumps(manifest).encode())
    page = write_report(run, run / "report").read().decode()
    top = page[: page.index('<section id="findings">')]
    assert "Stages that are not done: 4 failed, 1 diverged, 1,200 blocked." in top
    assert re.findall(r"sparse\(replicate=(\d)\): RuntimeError: \d", top) == ["0", "1", "2"]
    assert max(map(len, re.findall("<li>(.*?)</li>", top))) < 300, "the first of a long reason"
    assert '<a href="#failures">All 5 that failed or diverged</a>' in top
    assert 'id="failures"' in page
    (run / "manifest.json").write(json.dumps({**MANIFEST, "stages": {"dense": {"done": 2}}, "failures": []}).encode())
    assert 'id="alert"' not in write_report(run, run / "report").read().decode(), "nothing where nothing failed"


def test_headings_are_for_people_and_files_keep_their_columns(whole):
    page, tables = whole.read().decode(), whole.parent.path / "tables"
    headings = {html.unescape(found) for found in re.findall(r"<th[^>]*>(.*?)</th>", page)}
    assert {"rewind point k (epochs)", "error barrier, points (95 % interval)", "total (epochs)", "lth (%)"} <= headings
    for table in tables.glob("*.csv"):
        columns = set(pd.read_csv(table).columns)
        ours = {"low", "high", "label"} | {name for name in columns if "_" in name}
        assert not ours & headings, table.name
    assert {"low", "high", "label"} <= set(pd.read_csv(tables / "difference.csv").columns)


def test_numbers_of_a_column_have_the_same_decimals(whole):
    page = whole.read().decode()
    num_columns = 0
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        lines = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in table.split("</tr>")[1:-1]]
        for column in zip(*lines, strict=True):
            firsts = [re.match(r"[+-]?[\d,]+(?:\.(\d+))?(?: |$)", text) for text in column if text]
            if firsts and all(firsts):
                num_columns += 1
                assert len({len(found[1] or "") for found in firsts}) == 1, column
    assert num_columns > 60


def test_a_view_of_numbers():
    frame = pd.DataFrame(
        {"total": [0.8, 10.767, None], "sparsity": [0.8, 0.925, 0.9], "samples": pd.array([1000, 30, None], "Int64"),
         "gain": [1.0, -0.0, 2.0], "edges": ["a", None, "b"], "width": [1.0, 2.0, 4.0], "js": [None] * 3}
    )  # fmt: skip
    view = as_view(frame, "search")
    assert [list(column) for column in zip(*view.rows, strict=True)] == [
        ["0.8", "10.8", ""], ["0.800", "0.925", "0.900"], ["1,000", "30", ""], ["1", "0", "2"], ["a", "", "b"],
        ["1", "2", "4"],  # and no column of nothing
    ]  # fmt: skip
    assert view.headings[4] == "settings at an end of their range"
    assert view.are_numbers == [True, True, True, True, False, True]


def test_learning_curves_are_means_over_replicates_of_the_store(quickstart):
    results, curves = load_results(quickstart), load_curves(quickstart)
    figure = learning_curves(results, curves, "t")
    assert [axis.get_title() for axis in figure.axes] == ["sparsity 0.5, k = 2, width 0.5", "sparsity 0.9, k = 2, width 0.5"]
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    assert list(lines) == ["dense", "lth", "permuted", "naive", "random_permutation", "random"]
    mine = results.query("stage == 'sparse' and arm == 'naive' and sparsity == 0.9 and rewind_epoch == 2 and width == 0.5")
    mine = curves[curves["key"].isin(mine[mine["member"].isna()]["key"])]
    expected = mine.groupby("epoch")["train_loss"].agg(["mean", "std", "count"])
    assert expected["count"].tolist() == [2, 2], "replicates"
    np.testing.assert_allclose(lines["naive"].get_xydata(), np.column_stack([expected.index, expected["mean"]]))
    (band,) = [
        band for band in figure.axes[1].collections if band.get_facecolor()[0][:3].tolist() == [0, 158 / 255, 115 / 255]
    ]
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx((expected["mean"] + expected["std"]).max())
    assert figure.axes[0].get_ylabel() == "training loss (nats)"


def test_accuracy_that_was_measured_on_the_way_has_a_row_of_its_own(run):
    results = load_results(run)
    curves = pd.DataFrame(
        [
            {"key": key, "epoch": e, "train_loss": 1 / e, "test_accuracy": 10.0 * e}
            for key in results["key"]
            for e in (1, 2, 3)
        ]
    )
    axes = learning_curves(results, curves, "t").axes
    assert [axis.get_ylabel() for axis in axes] == ["test accuracy (%)", "training loss (nats)"]
    with pytest.raises(ValueError, match="no finished network has a recorded curve"):
        learning_curves(results, curves.iloc[:0], "t")


def test_a_run_of_a_version_without_curves_has_a_report(run):
    (run.parent.parent / "curves").remove()
    assert "Learning curves: no finished network has a recorded curve" in write_report(run, run / "report").read().decode()


def test_titles_of_single_figures_are_not_cut_off():
    figure = new_figure(SINGLE, 3.6, "table15_cifar10_resnet20_early_matching: from dense A to its pruned networks")
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_many_panels_wrap(run):
    store = run.parent.parent
    many = [row for s in (0.5, 0.6, 0.7, 0.8, 0.9) for row in rows(s)]
    write_table(store, "results", "r-1", many, MANIFEST)
    figure = accuracy_vs_rewind(load_results(run), "t")
    assert len(figure.axes) == 5
    assert figure.get_figwidth() == WIDE, "two beside each other"
    figure.canvas.draw()
    labelled = [any(label.get_visible() and label.get_text() for label in axis.get_xticklabels()) for axis in figure.axes]
    assert labelled == [False, False, False, True, True], "also above the place that is left empty"
