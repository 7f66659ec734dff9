"""The hash of a user's code: of its syntax under any Python, and of all that it imports locally."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raylth.core.models import code as code_module
from raylth.core.models import code_of

SOURCE = '''
"""A network."""
import math
from dataclasses import dataclass, field

type_of = {"a": 1, **{}}


@dataclass
class Settings:
    hidden: int = 8
    name: str = field(default="é")
    rate: float = 1e-3


def build(*, width, num_classes, in_shape, **kw):
    text = f"a{width!r:>{num_classes}} b" "c" f"{in_shape=} {width:.2f}" u"d"
    match width:
        case None | 1 if not kw:
            pass
        case {"a": [x, *rest]}:
            pass
    def inner(a, /, b=..., *, c=None, **d): return lambda *e: (yield)
    return [x async for x in y] if False else (1j, b"x", -1, 0x10, 10_000, not True)
'''
SAME = SOURCE.replace("return [x async", "return [x  # a comment\n        async").replace('"a": 1, **{}', "'a': 1,\n  **{},")
GOLDEN = "826bfb6156d75492"  # under every version


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def interpreters():
    found = [sys.executable]
    for version in ("3.12", "3.13", "3.14"):
        places = sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"))
        found += [str(place) for place in places] or [path for path in [shutil.which(f"python{version}")] if path]
    return found


@pytest.mark.parametrize("python", interpreters(), ids=lambda path: Path(path).parents[1].name)
def test_the_hash_is_the_same_under_every_python(python, tmp_path):
    """The function that writes syntax, run alone: other interpreters have no torch."""
    text = Path(code_module.__file__).read_text()
    writer = text[text.index("def _syntax(") :]
    script = f"""
import ast, hashlib, sys
from typing import Any
from collections.abc import Iterator
{writer}
for file in sys.argv[1:]:
    print(hashlib.sha256("".join(_syntax(ast.parse(open(file, "rb").read()))).encode()).hexdigest()[:16])
"""
    (tmp_path / "one.py").write_text(SOURCE)
    (tmp_path / "same.py").write_text(SAME)
    (tmp_path / "other.py").write_text(SOURCE.replace("10_000", "10_001"))
    files = [str(tmp_path / f"{name}.py") for name in ("one", "same", "other")]
    done = subprocess.run([python, "-c", script, *files], capture_output=True, text=True, check=True, timeout=60)
    one, same, other = done.stdout.split()
    assert one == same == GOLDEN
    assert other != one


def hashed(own, name="nets:build"):
    """The hash, in this process as it is: nothing is imported anew."""
    module = sys.modules[name.split(":")[0]]
    return code_of(name, getattr(module, name.split(":")[1]))


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


FILES = {
    "nets.py": "from blocks import act\nimport package.deep as deep\n\ndef build(**kw):\n    import late\n    return act\n",
    "blocks.py": "import importlib\nfrom helpers.names import RELU as act\nnamed = importlib.import_module('byname')\n",
    "helpers/names.py": "RELU = 'relu'\n",  # a folder without __init__.py
    "byname.py": "x = 1\n",
    "late.py": "x = 1\n",
    "package/__init__.py": "from . import near\n",
    "package/near.py": "from .further.down import x\n",
    "package/further/__init__.py": "",
    "package/further/down.py": "from ... import nothing\nfrom ..sibling import *\nx = 1\n",
    "package/sibling.py": "y = 1\n",
    "package/deep.py": "import blocks\n",  # a circle
    "unread.py": "x = 1\n",
    "package/unread.py": "x = 1\n",
}


@pytest.mark.parametrize("file", list(FILES))
def test_every_local_import_is_in_the_hash_and_nothing_else(own, file):
    files = {**FILES, "package/further/down.py": FILES["package/further/down.py"].replace("from ... import nothing\n", "")}
    write(own, files)
    __import__("nets")
    before = hashed(own)
    write(own, {file: files[file] + "# a comment\n"})
    assert hashed(own) == before
    write(own, {file: files[file] + "z = 2\n"})
    assert (hashed(own) == before) == file.endswith("unread.py")
    write(own, {file: files[file]})
    assert hashed(own) == before, "as it was"


def test_a_folder_elsewhere_on_the_path_is_ones_own_and_a_library_is_not(own, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    installed = tmp_path_factory.mktemp("venv") / "site-packages"
    installed.mkdir()
    for folder in (elsewhere, installed):
        monkeypatch.syspath_prepend(str(folder))
    write(elsewhere, {"mylib.py": "x = 1\n"})
    write(installed, {"theirs.py": "x = 1\n"})
    write(own, {"nets.py": "import mylib, theirs, torch, json\ndef build(**kw): pass\n"})
    __import__("nets")
    before = hashed(own)
    write(installed, {"theirs.py": "x = 2\n"})
    assert hashed(own) == before
    write(elsewhere, {"mylib.py": "x = 2\n"})
    assert hashed(own) != before


def test_a_file_that_this_python_cannot_parse_is_hashed_as_it_is(own):
    write(
        own,
        {"nets.py": "try:\n    import newer\nexcept SyntaxError:\n    pass\ndef build(**kw): pass\n", "newer.py": "def ("},
    )
    __import__("nets")
    before = hashed(own)
    write(own, {"newer.py": "def (("})
    assert hashed(own) != before


def test_a_moved_folder_has_the_same_hash(own, tmp_path_factory, monkeypatch):
    write(own, {"nets.py": "import blocks\ndef build(**kw): pass\n", "blocks.py": "x = 1\n"})
    __import__("nets")
    before = hashed(own)
    other = tmp_path_factory.mktemp("other")
    for name in ("nets.py", "blocks.py"):
        shutil.move(own / name, other / name)
    for name in ("nets", "blocks"):
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(other))
    __import__("nets")
    assert hashed(own) == before
