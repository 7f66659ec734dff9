"""The notebooks run from the first cell to the last on a quickstart's results, and are stored without any."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FIGURES = {"01_quickstart": 4, "02_basins": 6, "03_ensembles": 1, "04_compare_with_paper": 0}


def test_all_are_there():
    assert [path.stem for path in NOTEBOOKS] == list(FIGURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
def test_a_notebook_runs(path, quickstart, monkeypatch):
    monkeypatch.setenv("RAYLTH_STORE", str(quickstart.parent.parent))
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "stored without outputs"
    assert max(len(cell.source.splitlines()) for cell in code) <= 15, "the code is in raylth.report"
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[path.stem]
    assert any("text/html" in output.get("data", {}) for output in outputs), "tables"
