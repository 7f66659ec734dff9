"""A hash of a user's own code: its modules' syntax, alike under every version of Python, with what they import locally."""

import ast
import functools
import hashlib
import importlib.util
import inspect
import site
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from raylth.core.models.imported import LIBRARIES

__all__ = ["check_code", "code_of", "own_sources"]

NOT_OWN = {__name__.split(".", maxsplit=1)[0], *sys.stdlib_module_names}
INSTALLED = {"site-packages", "dist-packages"}


def code_of(name: str, build: Callable[..., object]) -> str | None:
    """Return a SHA-256 of the code in which something of a user's own is written; None for this package's and libraries'.

    It is that of the module of an import path `name`, of the one of the function `build`, and of all modules that these
    import, also inside functions, unless they are installed; of a package that is itself installed, of all its files. It is
    of the syntax, the same under every version of Python, so comments, line breaks and quotes do not matter.
    """
    first, files = _modules(name, build)
    if not first:
        return None
    found = {module: _read(file.read_bytes(), module, is_package=_is_package(file))[0] for module, file in files.items()}
    for module in (module for module, file in files.items() if _is_installed(str(file))):
        found[module] += _record(module.split(".")[0])
    parts = [*(found.pop(name) for name in first), *(f"{name}\n{found[name]}" for name in sorted(found))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def own_sources(name: str, build: Callable[..., object]) -> dict[str, bytes]:
    """Return the source files behind `code_of`, by module, but those of installed packages."""
    return {module: file.read_bytes() for module, file in _modules(name, build)[1].items() if not _is_installed(str(file))}


def _modules(name: str, build: Callable[..., object]) -> tuple[list[str], dict[str, Path]]:
    """Return the modules of an import path and of a function, and the files of these and of all that they import."""
    path, separator, _ = name.partition(":")
    while isinstance(build, functools.partial):
        build = build.func
    names = [*([path] if separator and path not in LIBRARIES else []), getattr(build, "__module__", None) or ""]
    first = {name: file for name in dict.fromkeys(names) if (file := _source(name)) is not None}
    beside = [str(file.parents[name.count(".") + _is_package(file)]) for name, file in first.items()]
    files: dict[str, Path] = {}
    waiting = dict(first)
    while waiting:
        module, file = waiting.popitem()
        files[module] = file
        if _is_installed(str(file)):
            continue
        for other in _read(file.read_bytes(), module, is_package=_is_package(file))[1]:
            if other not in files and (place := _find(other, beside)) is not None:
                waiting[other] = place
    return list(first), files


def _is_package(file: Path) -> bool:
    return file.name == "__init__.py"


def check_code(kind: str, name: str, build: Callable[..., object], code: str | None) -> None:
    """Raise RuntimeError where something of a user's own is other code than when it was planned: `code` was its `code_of`."""
    if code is not None and code_of(name, build) != code:
        raise RuntimeError(f"{kind} {name!r} is not the same code here as where the sweep was planned")


def _source(name: str) -> Path | None:
    """Return the source of a module that is loaded, and is neither this package's nor the standard library's."""
    module = sys.modules.get(name)
    if module is None or getattr(module, "__file__", None) is None or name.split(".", maxsplit=1)[0] in NOT_OWN:
        return None
    file = inspect.getsourcefile(module)
    return None if file is None else Path(file).absolute()


@functools.lru_cache(maxsize=256)
def _read(text: bytes, module: str, *, is_package: bool) -> tuple[str, tuple[str, ...]]:
    """Return a source's syntax as text, and the dotted names of all that it may import."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError):  # of another Python's
        return hashlib.sha256(text).hexdigest(), ()
    package = module if is_package else module.rpartition(".")[0]
    names = dict.fromkeys(prefix for name in _imports(tree, package) for prefix in _prefixes(name))
    return "".join(_syntax(tree)), tuple(names)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called, name = getattr(node.func, "attr", getattr(node.func, "id", "")), node.args[0].value
            if called in ("import_module", "__import__") and isinstance(name, str):
                yield _absolute(name, package)


def _absolute(name: str, package: str) -> str:
    try:
        return importlib.util.resolve_name(name, package) if name.startswith(".") and package else name.lstrip(".")
    except ImportError:  # beyond the outermost package
        return ""


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))] if name else []


def _find(name: str, beside: list[str]) -> Path | None:
    """Return the source of a module that is not installed; nothing is run."""
    first, *rest = name.split(".")
    loaded = getattr(sys.modules.get(first), "__file__", None)
    if first in NOT_OWN or (loaded is not None and _is_installed(loaded)):
        return None
    spec: ModuleSpec | None = PathFinder.find_spec(first, [*beside, *sys.path])
    for end in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join([first, *rest[: end + 1]]), list(spec.submodule_search_locations))
    if spec is None or spec.origin is None or not spec.has_location or _is_installed(spec.origin):
        return None
    return Path(spec.origin).absolute()


@functools.cache
def _record(package: str) -> str:
    """Return the hashes that an installed package's installer wrote of its sources."""
    lines: list[str] = []
    for name in sorted(set(metadata.packages_distributions().get(package, []))):
        record = metadata.distribution(name).read_text("RECORD") or metadata.version(name)
        lines += [line for line in record.splitlines() if "__pycache__" not in line and "dist-info" not in line]
    return "\n".join(lines)


def _is_installed(file: str) -> bool:
    return not INSTALLED.isdisjoint(Path(file).parts) or file.startswith(_libraries())


@functools.cache
def _libraries() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], site.getusersitepackages()]
    return tuple(f"{folder}/" for folder in folders)


def _syntax(node: Any) -> Iterator[str]:
    """Write a syntax tree as text: what a version of Python adds and leaves empty is not in it."""
    if isinstance(node, ast.JoinedStr):
        node = ast.JoinedStr(_joined(node.values))
    if isinstance(node, ast.Constant):
        yield f"{type(node.value).__name__}:{node.value!r};"
    elif isinstance(node, ast.AST):
        yield f"{type(node).__name__}("
        for name, value in ast.iter_fields(node):
            if value is not None and value != [] and not isinstance(value, ast.expr_context):
                yield f"{name}="
                yield from _syntax(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for entry in node:
            yield from _syntax(entry)
            yield ","
        yield "]"
    else:
        yield f"{node!r};"


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """Join the constant parts of an f-string, which versions of Python cut differently."""
    joined: list[ast.expr] = []
    for value in values:
        last = joined[-1] if joined else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            joined[-1] = ast.Constant(str(last.value) + str(value.value))
        elif not isinstance(value, ast.Constant) or value.value != "":
            joined.append(value)
    return joined
