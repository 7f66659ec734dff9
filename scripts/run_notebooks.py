"""Runs the notebooks, or those that are named, and keeps what they print and draw: `make notebooks`.

00_study runs a sweep of its own, in a folder that is removed; the others read the quickstart's results in raylth-store.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
VOLATILE = ("execution", "widgets")  # metadata with times


def main() -> None:
    """Run each notebook and write it with its outputs."""
    named = [Path(name).resolve() for name in sys.argv[1:]]
    for path in named or sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            where = folder if path.stem == "00_study" else str(path.parent)
            resources = {"metadata": {"path": where}}
            NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources).execute()
        for part in (notebook, *notebook.cells):
            for name in VOLATILE:
                part.metadata.pop(name, None)
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, path)
        print(f"{path.name}: {os.path.getsize(path) / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
