"""What shells complete, and what a terminal is not sent."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raylth.cli.completion import settings
from raylth.cli.main import COMMANDS
from raylth.config.sweep import SweepConfig

ASK = """
source {script}
COMP_WORDS=({words}) COMP_CWORD={last} COMP_LINE="{line}" COMP_POINT={point}
_shtab_raylth >/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "raylth.bash"
    words = [str(Path(sys.executable).with_name("raylth")), "completion", "bash"]
    file.write_text(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return file


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(words)
    asked = ASK.format(
        script=script, words=line if words[-1] else f"{line} ''", last=len(words) - 1, line=line, point=len(line)
    )
    return subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True).stdout.split()


def test_bash_completes_commands_options_and_settings(script):
    assert set(complete(script, "raylth", "")) >= set(COMMANDS)
    assert complete(script, "raylth", "sta") == ["status"]
    assert "--dry-run" in complete(script, "raylth", "sweep", "--d")
    assert "sparse.lr=" in complete(script, "raylth", "sweep", "a.yaml", "sparse.l")


def test_zsh_gets_a_script_too():
    words = [str(Path(sys.executable).with_name("raylth")), "completion", "zsh"]
    assert "#compdef raylth" in subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_every_setting_has_its_path():
    paths = settings(SweepConfig)
    assert len(paths) == len(set(paths)) > 60
    assert {"name", "sparse.lr", "search.space", "resources.dense.cpus", "data.holdout"} <= set(paths)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"completion"}))
def test_help_begins_with_examples_or_has_them(command, capsys):
    main = importlib.import_module(COMMANDS[command][0]).main
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "examples:" in text or "example:" in text


def test_no_colours_where_nobody_sees_them(tmp_path):
    """In a pipe, and in a terminal with NO_COLOR."""
    command = f"{sys.executable} -m raylth.sweep sweeps/quickstart.yaml --dry-run storage={tmp_path}/store"
    root = Path(__file__).parents[2]
    piped = subprocess.run(command.split(), capture_output=True, check=True, cwd=root).stdout
    assert b"\x1b[" not in piped
    for variables, expected in (({"NO_COLOR": "1"}, False), ({}, True)):
        environment = (
            {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")} | {"TERM": "xterm-256color"} | variables
        )
        shown = subprocess.run(
            ["script", "-qec", command, "/dev/null"], capture_output=True, check=True, cwd=root, env=environment
        ).stdout
        assert (b"\x1b[3" in shown or b"\x1b[1;3" in shown) == expected or not expected, shown[:300]
        if not expected:
            assert not any(code in shown for code in (b"\x1b[31m", b"\x1b[32m", b"\x1b[33m", b"\x1b[34m"))
