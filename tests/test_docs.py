"""The documentation: the site builds, nothing is left out of it, links and examples work, and the README is short."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from raylth import __version__
from raylth.cli.main import COMMANDS
from raylth.config.load import read_sweep
from raylth.report.sql import TABLES
from tests.fashion import write_fashion
from tests.test_house import check_commands

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / SITE["hooks"][0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = {path: make() for path, make in hooks().PAGES.items()}


def in_nav(entries) -> Iterator[str]:
    for entry in entries:
        below = entry if isinstance(entry, str) else next(iter(entry.values()))
        yield from [below] if isinstance(below, str) else in_nav(below)


def anchors(text: str) -> set[str]:
    """The ids of a page's headings, as Python-Markdown's toc makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE):
        given = re.search(r"\{ #([\w-]+) \}", heading)
        plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        found.add(given[1] if given else re.sub(r"[-\s]+", "-", plain))
    return found


def page_text(path: Path) -> str | None:
    """A page's text, also of one that is generated; None where there is no such page."""
    if path.is_file():
        return path.read_text() if path.suffix == ".md" else ""
    inside = path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else ""
    return GENERATED.get(inside)


def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: make docs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for path in in_nav(SITE["nav"]):
        place = Path(path).with_suffix("")
        assert (tmp_path / (place.parent if place.name == "index" else place) / "index.html").is_file(), path
    shown = (tmp_path / "reference/api/index.html").read_text()
    assert "theta_A[perm]" in shown, "docstrings are in the Python API"
    loaded = re.findall(
        r'(?:src|<link[^>]*href)="(https?://[^"]+)"', "".join(f.read_text() for f in tmp_path.rglob("*.html"))
    )
    assert not loaded, "a reader's browser asks no other host"


def test_every_page_is_in_the_navigation_once():
    listed = list(in_nav(SITE["nav"]))
    assert sorted(listed) == sorted([*(path.relative_to(DOCS).as_posix() for path in PAGES), *GENERATED])


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_every_relative_link_leads_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    check_links(path, text)


@pytest.mark.parametrize("page", GENERATED)
def test_links_of_generated_pages_lead_somewhere(page):
    check_links(DOCS / page, re.sub(r"^```.*?^```", "", GENERATED[page], flags=re.MULTILINE | re.DOTALL))


def check_links(path: Path, text: str) -> None:
    for target in re.findall(r"(?<!\\)\]\((?!https?:)([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        found = page_text(there)
        assert found is not None, f"{target}: no such file"
        assert not path.is_relative_to(DOCS) or there.is_relative_to(DOCS), f"{target}: outside the site"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


def test_the_glossary_is_in_alphabetical_order():
    terms = re.findall(r"^\*\*(.+)\*\*$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert len(terms) > 40
    assert terms == sorted(terms, key=str.casefold)


def test_the_citation_names_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text().count("\n") <= 150


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_commands_and_files_that_pages_name_exist(path):
    check_commands(path.read_text())


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def module_name(block: str) -> str | None:
    found = re.match(r"# (\w+)\.py\n", block)
    return found[1] if found else None


# Names of one example are unknown to the next; packages are imported once for all of a page.
EACH_ALONE = """
import sys
for code in sys.argv[1:]:
    exec(compile(code, code, "exec"), {"__name__": "__main__"})
"""


@pytest.mark.parametrize("path", [path for path in TEXTS if blocks(path, "python")], ids=named)
def test_python_examples_run(path, tmp_path, monkeypatch):
    examples = blocks(path, "python")
    modules = {name: block for block in examples if (name := module_name(block))}
    for name, block in modules.items():
        (tmp_path / f"{name}.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)  # where examples may write
    (tmp_path / "sweeps").symlink_to(ROOT / "sweeps")
    write_fashion(tmp_path / "fashion")
    for name in modules:
        try:
            importlib.import_module(name)
        finally:
            sys.modules.pop(name, None)
    store = repr(str(tmp_path / "store"))
    codes = [example.replace('"raylth-store"', store) for example in examples if module_name(example) is None]
    if codes:
        subprocess.run([sys.executable, "-c", EACH_ALONE, *codes], check=True, timeout=400, env=importable())


def importable() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


BASE = {
    "name": "page", "data": {"name": "mnist1d"}, "model": {"name": "mlp"},
    "seeds": {"replicates": 10}, "dense": {"epochs": 40},
    "sparse": {"arms": ["lth", "permuted", "naive"], "sparsities": [0.8, 0.9], "rewinds": [0, 10]},
}  # fmt: skip


@pytest.mark.parametrize("path", [path for path in TEXTS if blocks(path, "yaml")], ids=named)
def test_settings_in_examples_exist(path, tmp_path, monkeypatch):
    """Each is a whole sweep file or a part of one; what a page's modules bring is there, in a process of their own."""
    names = [name for block in blocks(path, "python") if (name := module_name(block))]
    for block in blocks(path, "python"):
        if name := module_name(block):
            (tmp_path / f"{name}.py").write_text(block)
        elif "savez" in block:
            subprocess.run([sys.executable, "-c", block], check=True, timeout=100, cwd=tmp_path)  # what the settings name
    write_fashion(tmp_path / "fashion")
    files = []
    for number, block in enumerate(blocks(path, "yaml")):
        if "--8<--" in block:
            continue  # a file of its own, whose tests are elsewhere
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump({**BASE, **yaml.safe_load(block)}))
        files.append(f"{number}.yaml")
    if not names:
        monkeypatch.chdir(tmp_path)
        for file in files:
            read_sweep(file)
        return
    code = f"from raylth.config.load import read_sweep\nfor file in {files}: read_sweep(file)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=importable(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_files_that_pages_include_exist():
    included = [name for path in PAGES for name in re.findall(r'--8<-- "([^"]+)"', path.read_text())]
    assert included
    for name in included:
        read_sweep(str(ROOT / name))


def test_the_reference_has_every_setting_command_and_column_with_its_meaning():
    settings = GENERATED["reference/settings.md"]
    assert "| `lr` | number > 0, < 1000 | `0.02` | Peak learning rate of a fresh schedule (paper: 0.02). |" in settings
    assert "`resources.dense`, `resources.dynamic`, `resources.imp`, `resources.sparse`" in settings
    assert not re.findall(r"^\| `\w+` \|  \|", settings, re.MULTILINE), "every setting has a type"
    commands = GENERATED["reference/commands.md"]
    for name in COMMANDS:
        assert f"## raylth {name}\n" in commands
    assert "--dry-run          print the plan" in commands
    columns = GENERATED["reference/columns.md"]
    for table, schema in TABLES.items():
        section = columns.split(f"## {table}\n")[1].split("\n## ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == schema.names
    assert "| `test_accuracy` | double | percent |" in columns
    assert "| `network` | string | whose weights: A or B |" in columns.split("## lines\n")[1], "shared columns, too"
