"""The notebooks run from the first cell to the last, and are stored with what they print and draw on the whole quickstart."""

import re
import shutil
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from raylth.driver.progress import StatusFile
from raylth.results import live
from raylth.stages import Graph
from raylth.store import locate
from tests.report.conftest import SMALL

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FIGURES = {"00_study": 6, "01_quickstart": 4, "02_basins": 6, "03_ensembles": 1, "04_compare_with_paper": 0}
PLACE = re.compile(r"/(?:home|root|tmp|work|Users|mnt)/")  # of the machine that ran them


def test_all_are_there():
    assert [path.stem for path in NOTEBOOKS] == list(FIGURES)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """How many outputs of each kind a cell has; of what it prints only whether it does."""
    found = Counter(kind for output in cell.outputs for kind in output.get("data", {}))
    return found | Counter({output.name for output in cell.outputs if output.output_type == "stream"})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
def test_a_notebook_runs(path, quickstart, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLTH_STORE", str(quickstart.parent.parent))
    monkeypatch.setenv("RAYLTH_SETTINGS", "\n".join(SMALL))
    notebook, stored = (nbformat.read(path, as_version=4) for _ in range(2))
    code = code_of(notebook)
    assert max(len(cell.source.splitlines()) for cell in code) <= 15, "the code is in raylth.report"
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[path.stem]
    assert any("text/html" in output.get("data", {}) for output in outputs), "tables"
    for ran, kept in zip(code, code_of(stored), strict=True):
        assert kinds(kept) == kinds(ran), f"stored outputs are not this cell's (make notebooks): {ran.source[:80]}"
    assert not PLACE.search(path.read_text())


LIVE = """
import threading, time
from raylth.driver.progress import StatusFile
from raylth.results import live
from raylth.stages import Graph, make_plan
from raylth.store import locate
from tests.conftest import tiny_sweep

graph = Graph(make_plan(tiny_sweep()).stages)
first = graph.next_ready()
file = StatusFile(locate({run!r}))

def sweep():
    time.sleep(1)
    file.update(graph, 0)
    time.sleep(2)
    graph.fail(first.key, "RuntimeError: no <room>")
    file.update(graph, 7, state="finished")

threading.Thread(target=sweep).start()
live({store!r}, every=0.5, wait=60)
"""


def test_a_running_sweep_is_drawn_until_it_ends(quickstart, tmp_path):
    """In a notebook of its own; results come from a copy of a finished run."""
    store = tmp_path / "store"
    shutil.copytree(str(quickstart.parent.parent), store)
    run = store / "runs" / quickstart.name
    (run / "status.json").unlink(missing_ok=True)
    StatusFile(locate(store / "runs" / "earlier-1")).update(Graph([]), 0, state="finished")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LIVE.format(run=str(run), store=f"{store}/"))])
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(Path.cwd())}}).execute()
    outputs = notebook.cells[0].outputs
    assert len(outputs) == 2, "one text and one figure, drawn again in their places"
    page, picture = (output["data"] for output in outputs)
    assert f"{quickstart.name}: finished" in page["text/html"]
    assert "RuntimeError: no &lt;room&gt;" in page["text/html"]
    assert "permuted" in page["text/html"], "accuracies so far"
    assert "image/png" in picture


WITH_ERRORS = """
import pandas as pd
from raylth.driver import notebook

notebook._results = lambda folder: pd.DataFrame({{"stage": ["sparse"], "status": ["done"]}})
notebook.accuracy_table = lambda results: (_ for _ in ()).throw(ValueError("rows that <differ>"))
notebook.live({run!r}, every=0.2, figure=lambda results: 1 / 0)
"""


def test_what_cannot_be_drawn_of_a_running_sweep_has_its_error_there(tmp_path):
    StatusFile(locate(tmp_path / "runs" / "one-1")).update(Graph([]), 0, state="finished")
    code = WITH_ERRORS.format(run=str(tmp_path / "runs" / "one-1"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(Path.cwd())}}).execute()
    page, picture = (output["data"]["text/html"] for output in notebook.cells[0].outputs)
    assert "one-1: finished" in page
    assert "ValueError: rows that &lt;differ&gt;" in page
    assert "ZeroDivisionError: division by zero" in picture


def test_outside_a_notebook_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: None)  # as in a plain Python
    StatusFile(locate(tmp_path / "runs" / "one-1")).update(Graph([]), 0, state="finished")
    with pytest.raises(RuntimeError, match="raylth status STORE --watch"):
        live(str(tmp_path))


def test_where_no_sweep_has_run_there_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no sweep has run here"):
        live(str(tmp_path))
