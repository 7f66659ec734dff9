"""The page in a real browser where something is wrong: late answers, faults of its own, runs that cannot be read."""

import numpy as np

from raylth.serve.data import cell_id, curves_data
from raylth.store import locate
from tests.serve import stores, test_browser
from tests.serve.conftest import serving
from tests.serve.stores import STUDY
from tests.serve.test_browser import figures, show, traces_of

page = test_browser.page  # the fixture

HOLD = """
window.real = window.fetch; window.held = []; window.answers = real;
window.fetch = (url, options) => String(url).includes('/curves/')
  ? new Promise((go) => held.push({ url: String(url), go: () => go(answers(url, options)) })) : real(url, options);
"""
CHOOSE = """
(() => { const select = byId('cell'); select.value = 'CELL';
select.dispatchEvent(new Event('change', { bubbles: true }));
return [curvePoints.length, document.querySelectorAll('#section-curves .plot').length]; })()
"""
ONE, OTHER, THIRD = cell_id(1.0, 0.9, 10), cell_id(2.0, 0.8, 0), cell_id(2.0, 0.95, 10)
ALERT = "document.getElementById('alert').textContent"


def test_the_curves_of_a_cell_are_never_shown_as_anothers(page, served, store):
    show(page, served)
    page.wait_for("curvePoints.length")
    figures(page, "curves")
    page.evaluate(HOLD)
    assert page.evaluate(CHOOSE.replace("CELL", ONE)) == [0, 0], "emptied at once"
    page.wait_for("held.length === 1")
    assert page.evaluate(CHOOSE.replace("CELL", OTHER)) == [0, 0]
    page.evaluate("held[0].go()")
    page.wait_for("held.length === 2")
    assert page.evaluate("held.map((each) => decodeURIComponent(each.url))") == [
        f"{STUDY}/curves/{ONE}.json",
        f"{STUDY}/curves/{OTHER}.json",
    ]
    assert page.evaluate("curvePoints.length") == 0, "the answer of a cell that is no longer chosen"
    page.evaluate("held[1].go()")
    page.wait_for("curvePoints.length")
    expected = curves_data(store / "runs" / STUDY)[OTHER]
    is_naive = [
        label == "naive" and measure == "train_loss"
        for label, measure in zip(expected["label"], expected["measure"], strict=True)
    ]
    panels = {panel["key"]: panel for panel in figures(page, "curves")}
    drawn = traces_of(panels["train_loss"])["naive"]["y"]
    np.testing.assert_allclose(drawn, np.array(expected["mean"])[is_naive].astype(float))
    page.evaluate("window.answers = () => Promise.resolve(new Response('404: no such cell', { status: 404 }))")
    assert page.evaluate(CHOOSE.replace("CELL", THIRD)) == [0, 0]
    page.wait_for("held.length === 3")
    page.evaluate("held[2].go()")
    page.wait_for(f"{ALERT}.includes('404: no such cell')")
    assert page.evaluate("[curvePoints.length, document.querySelectorAll('#section-curves .plot').length]") == [0, 0]


def test_a_fault_of_the_page_is_no_silent_server_and_what_it_hid_is_drawn_later(page, tmp_path):
    store = locate(tmp_path)
    rows = stores.study_rows(STUDY)
    stores.write_study(store, rows=[row for row in rows if row.get("arm") != "permuted"])
    with serving(store) as served:
        page.open(f"{served.address}/?token={served.token}")
        show(page, served)
        assert list(traces_of(figures(page, "accuracy")[0])) == ["dense", "lth", "naive"]
        page.evaluate("window.kept = drawAccuracy; drawAccuracy = () => { throw new TypeError('a fault'); }; 0")
        stores.write_study(store, rows=rows)
        page.evaluate("wake()")
        page.wait_for("!document.getElementById('alert').hidden")
        said = page.evaluate(ALERT)
        assert said.startswith(f"this page cannot show {STUDY}/data.json (TypeError: a fault). ")
        assert "does not answer" not in said
        page.evaluate("drawAccuracy = kept; wake()")
        page.wait_for("document.getElementById('alert').hidden")
        assert list(traces_of(figures(page, "accuracy")[0])) == ["dense", *stores.ARMS]


def test_a_run_that_cannot_be_read_is_in_the_list_with_its_file(page, tmp_path):
    store = locate(tmp_path)
    stores.write_study(store)
    (store / "runs" / "odd-1" / "manifest.json").write(b'{"config": null}')
    why = f"cannot be read: {tmp_path}/runs/odd-1/manifest.json: config should be an object, found null"
    with serving(store) as served:
        page.open(f"{served.address}/?token={served.token}")
        page.wait_for("document.querySelectorAll('#sweeps li').length === 2")
        assert page.evaluate("[...document.querySelectorAll('#sweeps li')].map((li) => li.innerText)[1]").count(why) == 1
        page.open(f"{served.address}/runs/odd-1")
        page.wait_for(f"document.getElementById('state').innerText === {why!r}")
