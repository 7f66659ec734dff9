"""What the README says is true, files and functions stay small; who may import what is in pyproject.toml (import-linter)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "raylth"
MOST_LINES = 50  # of a function
LONG = {"raylth/core/training/engines/kernels.py": {"input_gradient"}}  # a Triton kernel: parts of it would have no meaning


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def test_core_runs_where_ray_and_pydantic_are_missing():
    script = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "pydantic", "yaml", "rich"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import importlib, pkgutil, raylth.core
for module in pkgutil.walk_packages(raylth.core.__path__, "raylth.core."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] not in ("ffcv", "numba", "nvidia", "torchcodec"):  # loaders of images, each an extra
            raise
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_the_file_tree_of_the_readme_is_the_real_one():
    block = re.search(r"```text\n(raylth/.*?)```", readme(), re.DOTALL)
    assert block
    listed: set[str] = set()
    stack: list[str] = []
    for line in block[1].splitlines():
        name = line.split("#")[0].rstrip()
        if not name.strip():
            continue
        depth = (len(name) - len(name.lstrip())) // 2
        for entry in name.split():
            stack[depth:] = [entry]
            path = "/".join(part.strip("/") for part in stack)
            assert (ROOT / path).exists(), f"the README names {path}, which does not exist"
            listed.add(path)
    folders = {str(path.parent.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    assert not folders - listed, f"the README's tree lacks {sorted(folders - listed)}"
    loose = {f"raylth/{path.name}" for path in PACKAGE.glob("*.py") if "__" not in path.name}
    assert not loose - listed, f"the README's tree lacks {sorted(loose - listed)}"


def check_commands(text: str) -> None:
    """Commands and files that a text names exist."""
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for module in set(re.findall(r"python -m (raylth\.[a-z.]+)", text)):
        assert module in modules(), module
    for file in set(re.findall(r"\b(?:sweeps|benchmarks|docs|tests|clusters|scripts)/[\w./-]+\.\w+", text)):
        assert (ROOT / file).exists(), file


def test_the_commands_of_the_readme_exist():
    check_commands(readme())
    for path in re.findall(r"\]\((?!http|#)([^)#]+)", readme()):
        assert (ROOT / path).exists(), path


def test_every_row_of_the_fault_table_names_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("| ")][2:]
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row)
        assert names, f"no test: {row}"
        assert all(f"def {name}(" in tests for name in names), row


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 350
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name for node in functions if node.end_lineno - node.lineno + 1 > MOST_LINES}
    assert long == LONG.get(str(path.relative_to(ROOT)), set())


def test_files_that_are_begun_first_exist():
    assert not [name for name in LONGEST if not (ROOT / "tests" / name).exists()]


def test_the_command_line_does_not_import_ray():
    """Which reads at its import whether to send a token; that is decided after the command line was read."""
    code = "import sys, raylth.sweep; print(raylth.sweep.main(['none.yaml', '--dry-run']), 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "2 False\n", "all modules are imported by the time that a file is found missing"
