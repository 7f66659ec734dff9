"""Help, versions, status and completion answer at once: they import nothing that takes seconds."""

import ast
import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from raylth import __version__, report
from raylth.cli import main, status
from raylth.driver.progress import StatusFile
from raylth.stages import Graph, make_plan
from raylth.store import locate
from tests.conftest import tiny_sweep

HEAVY = ("torch", "torchvision", "ray", "pandas", "pyarrow", "scipy", "matplotlib", "sklearn", "optuna", "pydantic")
RUN = """
import os, runpy, signal, sys, traceback
class Heavy:
    def find_spec(self, name, path=None, target=None):
        if any(f"{name}.".startswith(f"{heavy}.") for heavy in __HEAVY__):
            if __INTERRUPT__:
                os.kill(os.getpid(), signal.SIGINT)
            traceback.print_stack()
            print("imports", name, file=sys.stderr, flush=True)
            os._exit(99)  # an exception might be caught
sys.meta_path.insert(0, Heavy())
sys.path.insert(0, __ROOT__)  # also where an installed raylth is another one
module = sys.argv.pop(1)
if module == "raylth":
    sys.argv[0] = "raylth"
    from raylth.cli.main import entry
    entry()
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
ROOT = Path(__file__).parents[2]


def run(*words: object, heavy: tuple[str, ...] = HEAVY, interrupt: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `raylth ...`, or a module as `python -m` does; it ends with status 99, or gets SIGINT, when it imports `heavy`."""
    code = (
        RUN.replace("__HEAVY__", repr(heavy)).replace("__INTERRUPT__", repr(interrupt)).replace("__ROOT__", repr(str(ROOT)))
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )


NO_MODULE = ("check", "completion", "new", "quickstart")  # commands of the console script alone


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("raylth --version", f"raylth {__version__}"),
        ("raylth --help", "usage: raylth COMMAND ..."),
        ("raylth.sweep --version", f"raylth {__version__}"),
        ("raylth sweep --version", f"raylth {__version__}"),
        *((f"raylth {name} --help", "usage: ") for name in main.COMMANDS),
        *((f"raylth.{name} --help", f"usage: python -m raylth.{name} ") for name in main.COMMANDS if name not in NO_MODULE),
    ],
)
def test_help_and_versions_import_nothing_heavy(words, first):
    done = run(*words.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith(first)


@pytest.mark.parametrize(("words", "said"), [("raylth", "usage: "), ("raylth staus", "raylth: unknown command 'staus', did")])
def test_a_missing_or_misspelt_command_imports_nothing_heavy(words, said):
    done = run(*words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)


@pytest.mark.parametrize("module", ["raylth.status", "raylth status"])
def test_the_status_of_a_store_imports_nothing_heavy(module, tmp_path, capsys):
    plan = make_plan(tiny_sweep(sparse={"arms": ["lth"], "sparsities": [0.5]}, match={"epochs": None}))
    graph = Graph(plan.stages)
    graph.fail(graph.next_ready().key, "RuntimeError: no")
    StatusFile(locate(tmp_path) / "runs/a-1").update(graph, 5, state="finished", used={"gpu_hours": 1.5})
    done = run(*module.split(), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a-1: finished, reported ")
    for text in ("dense", "blocked", "used so far: 1.50 GPU-hours", "RuntimeError: no; blocks "):
        assert text in done.stdout
    done = run(*module.split(), tmp_path, "--json")
    assert status.main([str(tmp_path), "--json"]) == 0
    assert json.loads(done.stdout) == json.loads(capsys.readouterr().out)


def test_the_schema_imports_the_settings_alone():
    aside = (*(name for name in HEAVY if name not in ("torch", "pydantic", "pyarrow")), "raylth.driver", "raylth.stages")
    done = run("raylth.sweep", "--schema", heavy=aside)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sparse" in json.loads(done.stdout)["properties"]


@pytest.mark.parametrize("form", ["raylth.", "raylth "])
@pytest.mark.parametrize("words", ["sweep a.yaml", "report none", "results none", "data imagenet none out", "export none 0"])
def test_ctrl_c_in_the_seconds_of_imports_is_one_line(form, words):
    done = run(*f"{form}{words}".split(), interrupt=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped before anything was started\n")


def test_the_tab_key_starts_no_process(tmp_path):
    """Completion in bash needs its script alone: here the search path is empty."""
    done = run("raylth", "completion", "bash", heavy=("ray", "raylth.stages"))
    assert (done.returncode, done.stderr) == (0, "")
    ask = "COMP_WORDS=(raylth sweep a.yaml sparse.l) COMP_CWORD=3; _shtab_raylth; printf '%s\\n' \"${COMPREPLY[@]}\""
    bash = subprocess.run(
        [shutil.which("bash") or "bash", "-c", done.stdout + ask],
        capture_output=True, text=True, check=True, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert bash.stderr == ""
    assert "sparse.lr=" in bash.stdout.split()


def test_names_of_the_report_are_what_type_checkers_see():
    """Whatever was imported before: a module of a function's name would hide it."""
    for module in pkgutil.iter_modules(report.__path__, "raylth.report."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    (typed,) = [node for node in ast.parse(Path(report.__file__).read_text()).body if isinstance(node, ast.If)]
    names = {alias.name: node.module for node in typed.body for alias in node.names}
    assert set(names) == set(report.__all__) == set(dir(report))
    for name, module in names.items():
        assert getattr(report, name) is getattr(importlib.import_module(module), name)
        assert not isinstance(getattr(report, name), ModuleType)
    with pytest.raises(AttributeError, match=r"module 'raylth\.report' has no attribute 'nothing'"):
        report.nothing  # noqa: B018
