"""The page in a real browser: its figures equal the Parquet, choices are in the address, phones, dark mode, keyboard."""

import json

import numpy as np
import pytest
from scipy import stats

from raylth.arms import ARMS
from raylth.store import locate
from tests.chromium import Chromium
from tests.report.test_page import browser
from tests.serve import stores
from tests.serve.conftest import serving
from tests.serve.stores import LIVE, OLD, PARTS, STUDY
from tests.serve.test_data import CELL, rows_of

DRAWN = "document.querySelectorAll('#section-SECTION .plot').length && "
DRAWN += "[...document.querySelectorAll('#section-SECTION .plot')].every((plot) => plot.data)"
TRACES = """[...document.querySelectorAll('#section-SECTION figure')].map((figure) => ({
  key: figure.dataset.key, title: figure.querySelector('h3').textContent,
  traces: figure.querySelector('.plot').data.map((t) => ({
    name: t.name, x: [...t.x], y: [...t.y], mode: t.mode, colour: t.line?.color ?? t.marker?.color, symbol: t.marker?.symbol,
    bars: [t.error_y, t.error_x].filter(Boolean).map((e) => [[...e.arrayminus], [...e.array]])[0] ?? null,
    lines: [...figure.querySelectorAll('.scatterlayer .point')].length,
  }))}))"""
OPEN = "for (const details of document.querySelectorAll('details')) details.open = true"


@pytest.fixture(scope="module")
def page(served, tmp_path_factory):
    """A browser that has the token's cookie."""
    found = Chromium(browser(), tmp_path_factory.mktemp("chromium"))
    try:
        found.size(1280)
        found.open(f"{served.address}/?token={served.token}")
        found.wait_for("document.querySelectorAll('#sweeps li').length === 4")
        yield found
        assert found.problems == [], "no exception, nothing that the policy forbids"
    finally:
        found.close()


def figures(page, section):
    """Return what Plotly has drawn in a section: panels with their traces."""
    page.wait_for(DRAWN.replace("SECTION", section))
    return page.evaluate(TRACES.replace("SECTION", section))


def show(page, served, run=STUDY, choices=""):
    page.open(f"{served.address}/runs/{run}{choices}")
    page.wait_for("document.getElementById('state').textContent && data !== null")


def traces_of(panel):
    return {trace["name"]: trace for trace in panel["traces"]}


def test_the_token_leaves_the_address(page, served):
    page.open(f"{served.address}/?token={served.token}")
    assert page.evaluate("location.href") == f"{served.address}/"
    page.wait_for("document.querySelectorAll('#sweeps li').length === 4")
    page.evaluate(f"document.querySelector('#sweeps a[href=\"runs/{STUDY}\"]').click()")
    page.wait_for(
        f"location.pathname === '/runs/{STUDY}' && document.getElementById('state')?.textContent.includes('finished')"
    )


def test_accuracies_on_the_page_equal_the_parquet(page, served, store):
    show(page, served)
    results = rows_of(store, "results")
    results = results[(results["stage"] == "sparse") & (results["status"] == "done")]
    panels = figures(page, "accuracy")
    assert [panel["title"] for panel in panels] == [f"k = {k}, width {w}" for w in (1, 2) for k in (0, 10)]
    for panel, (width, rewind) in zip(panels, [(w, k) for w in (1.0, 2.0) for k in (0, 10)], strict=True):
        drawn = traces_of(panel)
        assert list(drawn) == ["dense", *stores.ARMS]
        for arm in stores.ARMS:
            mine = results[(results["width"] == width) & (results["rewind_epoch"] == rewind) & (results["arm"] == arm)]
            groups = mine.groupby("sparsity")["test_accuracy"]
            assert drawn[arm]["x"] == list(groups.groups)
            np.testing.assert_allclose(drawn[arm]["y"], groups.mean())
            half = groups.sem() * stats.t.ppf(0.975, groups.count() - 1)
            np.testing.assert_allclose(drawn[arm]["bars"], [half, half])
            assert drawn[arm]["colour"] == ARMS[arm].colour
            assert drawn[arm]["lines"] == 3 * len(stores.ARMS), "points on the screen"
    page.evaluate(OPEN)
    page.wait_for("document.querySelector('#accuracy-numbers tbody tr')")
    numbers = page.evaluate(
        "[...document.querySelectorAll('#accuracy-numbers tbody tr')].map((r) => [...r.cells].map((c) => c.innerText))"
    )
    assert len(numbers) == 36
    for row in numbers:
        mine = results[(results[CELL] == [float(text) for text in row[:3]]).all(axis=1) & (results["arm"] == row[3])]
        assert row[4] == f"{mine['test_accuracy'].mean():.2f}"


def test_differences_curves_and_lines_on_the_page_equal_the_parquet(page, served, store):
    show(page, served, choices="#widths=2&contrast=permuted+−+naive&cell=2.0-0.9-10")
    results, curves, lines = (rows_of(store, name) for name in ("results", "curves", "lines"))
    wide = results[results["width"] == 2.0].pivot_table(index=[*CELL[1:], "replicate"], columns="arm", values="test_accuracy")
    expected = (wide["permuted"] - wide["naive"]).groupby(level=[0, 1]).mean()
    (panel,) = figures(page, "contrasts")
    assert panel["traces"][0]["y"] == [f"S = {s:g}, k = {k:g}" for s, k in expected.index]
    np.testing.assert_allclose(panel["traces"][0]["x"], expected)
    page.wait_for("curvePoints.length")
    cell = results[(results[CELL] == [2.0, 0.9, 10]).all(axis=1)]
    for panel, measure in zip(figures(page, "curves"), ("test_accuracy", "train_loss"), strict=True):
        drawn = traces_of(panel)
        for arm in stores.ARMS:
            keys = cell[cell["arm"] == arm]["key"]
            mean = curves[curves["key"].isin(keys)].groupby("epoch")[measure].mean()
            assert drawn[arm]["x"] == list(mean.index)
            np.testing.assert_allclose(drawn[arm]["y"], mean)
    panels = {panel["title"].removesuffix(", activation"): panel for panel in figures(page, "lines")}
    assert set(panels) == {"π(A) - B, width 2", "π⁻¹(permuted) - lth, width 2, S = 0.9, k = 10"}
    test = lines[(lines["split"] == "test") & (lines["width"] == 2.0) & (lines["between"] == "pi(A) - B")]
    for correction, rows in test.groupby("correction"):
        trace = traces_of(panels["π(A) - B, width 2"])[correction]
        np.testing.assert_allclose(trace["y"], rows.groupby("alpha")["error"].mean())


def test_choices_are_in_the_address_and_stay_when_data_is_read_again(page, served):
    show(page, served, choices="#arms=lth&arms=naive&widths=1&against=rewind")
    panels = figures(page, "accuracy")
    assert [panel["title"] for panel in panels] == [f"sparsity {s:g}, width 1" for s in stores.SPARSITIES]
    assert list(traces_of(panels[0])) == ["dense", "lth", "naive"]
    checked = "[...document.querySelectorAll('#choice-arms input')].map((input) => input.checked)"
    assert page.evaluate(checked) == [True, False, True]
    assert page.evaluate("document.getElementById('section-contrasts').querySelectorAll('.plot').length") == 0, "no such pair"
    page.evaluate("document.querySelector('#choice-arms input[value=permuted]').focus()")
    page.press(" ")
    assert list(traces_of(figures(page, "accuracy")[0])) == ["dense", *stores.ARMS]
    assert page.evaluate("location.hash") == "#widths=1&against=rewind"
    page.press(" ")
    assert page.evaluate("location.hash") == "#widths=1&against=rewind&arms=lth&arms=naive"
    page.evaluate("location.hash = '#arms=permuted'")
    page.wait_for("document.querySelector('#section-accuracy .plot').data.length === 2")
    page.evaluate("document.querySelector('nav a[href=\"#section-tables\"]').click()")
    assert page.evaluate("location.hash") == "#arms=permuted", "a jump on the page is no choice"


def test_a_sweep_that_grows_is_drawn_again_with_the_readers_choices(page, tmp_path):
    store = locate(tmp_path)
    rows = stores.study_rows(STUDY)
    stores.write_study(store, rows=[row for row in rows if row.get("arm") != "permuted"])
    with serving(store) as served:
        page.open(f"{served.address}/?token={served.token}")
        show(page, served, choices="#arms=naive&widths=2")
        assert list(traces_of(figures(page, "accuracy")[0])) == ["dense", "naive"]
        page.evaluate("document.querySelector('#choice-arms input[value=naive]').focus()")
        page.evaluate("document.querySelector('#section-accuracy .plot').dataset.mine = 'kept'")
        page.evaluate("document.getElementById('accuracy-numbers').open = true")
        stores.write_study(store, rows=rows)
        page.evaluate("wake()")
        page.wait_for("document.querySelectorAll('#choice-arms input').length === 3")
        assert list(traces_of(figures(page, "accuracy")[0])) == ["dense", "naive"]
        assert page.evaluate("[...document.querySelectorAll('#choice-widths input')].map((i) => i.checked)") == [False, True]
        assert page.evaluate("document.activeElement.value") == "naive", "what was focused stays so"
        assert page.evaluate("document.querySelector('#section-accuracy .plot').dataset.mine") == "kept", "drawn in its place"
        assert page.evaluate("document.getElementById('accuracy-numbers').open")


def test_a_server_that_is_gone_is_said_and_the_page_stays(page, tmp_path):
    store = locate(tmp_path)
    stores.write_study(store)
    with serving(store) as served:
        page.open(f"{served.address}/?token={served.token}")
        show(page, served)
        figures(page, "accuracy")
    page.evaluate("wake()")
    page.wait_for("!document.getElementById('alert').hidden")
    assert "the server does not answer" in page.evaluate("document.getElementById('alert').textContent")
    assert len(figures(page, "accuracy")) == 4
    page.problems[:] = [problem for problem in page.problems if "ERR_CONNECTION" not in json.dumps(problem)]


def test_failures_are_text_with_their_reasons(page, served):
    show(page, served)
    text = page.evaluate("document.getElementById('failures').innerText")
    assert f"diverged: sparse(replicate=2): {stores.REASON} (blocks 3 more)" in text
    assert page.evaluate("document.querySelectorAll('#failures b').length") == 0
    show(page, served, PARTS)
    assert "failed: match(replicate=1): RuntimeError: no" in page.evaluate("document.getElementById('failures').innerText")
    assert "about 1 h 00 min left" in page.evaluate("document.getElementById('state').innerText")
    assert page.evaluate("document.getElementById('bar').position") == pytest.approx(2 / 16)
    show(page, served, LIVE)
    assert "No network has finished yet" in page.evaluate("document.getElementById('notes').innerText")
    assert page.evaluate("document.getElementById('failures').hidden")


@pytest.mark.parametrize("path", ["", f"runs/{STUDY}", f"runs/{LIVE}", f"runs/{OLD}"])
def test_a_phone_has_one_column_and_scrolls_down_only(page, served, path):
    page.size(390, 844, is_phone=True)
    try:
        page.open(f"{served.address}/{path}")
        page.wait_for("document.getElementById('state')?.textContent || document.querySelector('#sweeps li')")
        if path.endswith(STUDY):
            figures(page, "lines")
        page.evaluate(OPEN)
        if path.endswith(STUDY):
            page.wait_for("document.querySelector('#more img')?.complete && document.querySelector('#lines-numbers tr')")
            left = page.evaluate("[...document.querySelectorAll('.panels > figure')].map((f) => f.getBoundingClientRect().x)")
            assert len(left) > 8
            assert len(set(left)) == 1, "one column"
            drawn = page.evaluate(
                "[...document.querySelectorAll('.plot .main-svg')].map((s) => s.getBoundingClientRect().right)"
            )
            assert max(drawn) <= 390
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.documentElement.clientWidth") == 390
    finally:
        page.size(1280)


LUMINANCE = """((text) => { const [r, g, b] = text.match(/[\\d.]+/g).map((v) => v / 255).map(
  (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_are_readable(page, served, scheme):
    page.colours("light" if scheme == "dark" else "dark")
    try:
        show(page, served)
        figures(page, "accuracy")
        page.colours(scheme)  # while the page is open
        plot, ground = "document.querySelector('#section-accuracy .plot')", {"light": "#ffffff", "dark": "#14181d"}[scheme]
        page.wait_for(f"{plot}.layout.paper_bgcolor === '{ground}'")
        luminance = page.evaluate(f"{LUMINANCE}(getComputedStyle(document.body).backgroundColor)")
        assert (luminance < 0.05) is (scheme == "dark")
        for selector in ("body", "a", ".soft", "#failures", "summary"):
            text = page.evaluate(f"{LUMINANCE}(getComputedStyle(document.querySelector('{selector}')).color)")
            low, high = sorted((text, luminance))
            assert (high + 0.05) / (low + 0.05) >= 4.5, selector
        (dense,) = [trace for trace in figures(page, "accuracy")[0]["traces"] if trace["name"] == "dense"]
        assert dense["colour"] == page.evaluate("css('--ink')"), "black lines are light on a dark ground"
    finally:
        page.colours("light")


def test_everything_is_reached_by_the_keyboard_with_a_visible_focus(page, served):
    show(page, served)
    figures(page, "accuracy")
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    wanted = page.evaluate(
        "[...document.querySelectorAll('main a[href], main input, main select, main summary')]"
        ".filter((e) => e.checkVisibility()).map((e) => e.value + e.innerText + e.id)"
    )
    reached = []
    for _ in range(200):
        page.press("Tab")
        at = page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e); "
            "return [e.tagName, e.value + e.innerText + e.id, s.outlineStyle, parseFloat(s.outlineWidth), "
            "e.labels?.length ?? 1]; })()"
        )
        if at[0] == "BODY":
            break
        assert at[2] == "solid", at
        assert at[3] >= 2, at
        assert at[4] >= 1, "native controls have a label"
        reached.append(at[1])
    assert at[0] == "BODY", "and out again"
    assert [each for each in reached if each in wanted] == wanted, "in the order of the page"


def test_figures_have_a_text_instead(page, served):
    show(page, served)
    figures(page, "accuracy")
    found = page.evaluate(
        "[...document.querySelectorAll('.plot')].map((p) => [p.getAttribute('role'), p.getAttribute('aria-label')])"
    )
    assert all(role == "img" and "The same numbers are in the table below" in label for role, label in found)
    assert page.evaluate("[...document.querySelectorAll('table th')].every((th) => th.scope === 'col')")
