"""Exit statuses: the numbers that scripts rely on, and that help and commands take them from one place."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from raylth.cli.main import COMMANDS
from raylth.common.exit_codes import ExitCode, describe

PACKAGE = Path(__file__).parents[2] / "raylth"
WITHOUT = {"completion"}  # which cannot fail


def test_the_numbers_stay_as_they_are():
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0, "FAILED": 1, "BAD_INPUT": 2, "BUDGET": 3, "INTERRUPTED": 130,
    }  # fmt: skip
    assert [f"{code}" for code in ExitCode] == ["0", "1", "2", "3", "130"], "for a shell, and in a text"


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - WITHOUT))
def test_the_help_of_a_command_lists_its_exit_statuses(command):
    text = importlib.import_module(COMMANDS[command][0]).make_parser().format_help()
    (listed,) = re.findall(r"^exit status: (.*)", text, re.MULTILINE | re.DOTALL)
    numbers = [int(number) for number in re.findall(r"(?:^|; )(\d+)\b", " ".join(listed.split()))]
    assert 0 in numbers
    assert ExitCode.BAD_INPUT in numbers, "which argparse itself may end with"
    assert set(numbers) <= set(ExitCode)
    if command == "sweep":
        assert " ".join(listed.split()) == "; ".join(f"{code:d} {code.meaning}" for code in ExitCode)


def test_a_command_may_have_its_own_meanings():
    assert describe({ExitCode.OK: "", ExitCode.BAD_INPUT: "no store"}, "else another's") == (
        "exit status: 0; 2 no store; else another's"
    )
    assert all(len(line) <= 110 for line in describe().splitlines())


@pytest.mark.parametrize(
    "module", [module for module, _ in COMMANDS.values()] + ["raylth.driver.run_sweep", "raylth.cli.main"]
)
def test_no_command_returns_a_number_of_its_own(module):
    tree = ast.parse((PACKAGE.parent / f"{module.replace('.', '/')}.py").read_text())
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) == "int"
    ]
    returned = [node.value for function in functions for node in ast.walk(function) if isinstance(node, ast.Return)]
    assert not [ast.unparse(value) for value in returned if value and re.search(r"^-?\d|else \d", ast.unparse(value))]
