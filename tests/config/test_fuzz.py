"""Whatever a sweep file or an override holds, a dry run ends with 0 or 2, with a line for each mistake, and makes nothing."""

import contextlib
import copy
import functools
import io
import json
import math
import os
import re
import resource
import signal
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sklearn.datasets
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raylth.cli import sweep
from raylth.stages.planning import network_checks, shapes

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
SCHEMA: dict[str, Any] = json.loads((SWEEPS / "schema.json").read_text())
CPU_SECONDS = 20  # of one dry run: a clock on the wall would count what others do on this machine
MEMORY = 1_500  # MB by which the process may grow
FREE = 3 * 10**8  # bytes that are there to try a network: large ones are only planned
FILE = "sweep.yaml"
PLACE = re.compile(rf"({re.escape(FILE)}(:\d+)?|command line): \S")
IN_CI = bool(os.environ.get("CI"))


def fuzz(examples: int) -> settings:
    """The same examples each time in CI, others in each run elsewhere."""
    kept = {"database": None, "print_blob": False} if IN_CI else {}
    return settings(max_examples=examples, deadline=None, derandomize=IN_CI, suppress_health_check=list(HealthCheck), **kept)


class Overtime(BaseException):
    """A dry run that does not come to an end; nothing that the product catches."""


@dataclass
class Ended:
    status: int
    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is all a dry run could write to: working folder, home, and that of temporary files."""
    place = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sklearn.datasets, "load_digits", functools.cache(sklearn.datasets.load_digits))  # a CSV file
        for raw in (TINY, SEARCH):  # what takes seconds to import is imported; torch's compiler and wandb make folders then
            assert dry_run(text_of(raw), limit=0).status == 0
            assert dry_run(text_of(raw), ("model.name=nothing",), limit=0).status == 2
        patch.setattr(shapes, "psutil", SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=FREE)))
        for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
            patch.setenv(name, str(place))
        patch.setattr(tempfile, "tempdir", str(place))
        yield place


@pytest.fixture(autouse=True)
def _memory_stays_small() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEMORY, f"the process grew by {grown:.0f} MB"


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Overtime after so many seconds of the process's CPU time; 0: never."""

    def end(number: int, frame: object) -> None:
        raise Overtime

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def contents() -> dict[str, tuple[int, int]]:
    return {str(path): ((stat := path.lstat()).st_size, stat.st_mtime_ns) for path in Path().rglob("*")}


def dry_run(content: str | bytes, overrides: tuple[str, ...] = (), *, limit: float = CPU_SECONDS) -> Ended:
    """Run a dry run in this process with a terminal's streams."""
    Path(FILE).write_bytes(content.encode() if isinstance(content, str) else content)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    before = contents()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(record=True) as warned:
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # as Python does by itself
        try:
            with limited(limit):
                status = sweep.main([FILE, *overrides, "--dry-run"])
        except Overtime as error:
            raise AssertionError(f"no end within {limit} s") from error
    said = []
    for stream in (out, err):
        stream.flush()
        said.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    made = sorted(set(contents().items()) ^ set(before.items()))
    assert not made, f"a dry run made or changed {made}"
    others = [str(each.message) for each in warned if not any(name in each.filename for name in ("/raylth/", "/optuna/"))]
    assert not others, f"warnings that are not of the sweep: {others}"
    return Ended(status, *said)


def check(content: str | bytes, overrides: tuple[str, ...] = ()) -> Ended:
    """Hold a dry run against what is promised of every one."""
    ended = dry_run(content, overrides)
    assert ended.status in (0, 2)
    if ended.status == 0:
        assert ended.err == ""
        assert "nothing was started" in ended.out
        return ended
    lines = ended.err.removesuffix("\n").split("\n")
    assert len(lines) == len(ended.err.splitlines()), "a character that ends a line within one"
    for line in lines:
        assert PLACE.match(line), f"a line that does not say where: {line!r}"
        assert line.isprintable() or line.replace("\t", " ").isprintable()
    return ended


def text_of(raw: object) -> str:
    return yaml.safe_dump(raw, allow_unicode=True, sort_keys=False)


TINY: dict[str, Any] = {
    "name": "tiny",
    "seeds": {"replicates": 2},
    "data": {"name": "digits", "num_train": 100, "num_test": 50},
    "model": {"name": "mlp", "widths": [0.125]},
    "dense": {"epochs": 3},
    "imp": {"epochs_per_round": 1},
    "match": {"epochs": [2, 3]},
    "sparse": {"arms": ["lth", "permuted", "naive"], "sparsities": [0.3], "rewinds": [0, 1]},
    "connect": {"points": 3, "unmatched": True},
    "analyses": {
        "ensemble": {},
        "imp_line": {},
        "lines": [{}],
        "planes": [{"resolution": 3}],
        "overlap": {"own": True},
        "match_quality": {"samples": [10], "epochs": [1]},
    },
    "resources": {"dense": {"gpus": "1/3"}, "match": {"cpus": 2}},
    "prices": {"gpu_hour": 1.0},
    "budget": {"usd": 10.0},
    "log": {"tensorboard": "board"},
}
SEARCH: dict[str, Any] = {
    **{key: TINY[key] for key in ("name", "data", "model", "dense", "imp")},
    "sparse": {"arms": ["lth", "permuted"], "sparsities": [0.3]},
    "search": {
        "space": {
            "sparse.lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
            "sparse.batch_size": {"type": "categorical", "choices": [16, 32]},
        },
        "holdout": 20,
        "trials": 3,
        "stop": {"name": "asha"},
    },
}


def shipped() -> list[dict[str, Any]]:
    """The sweep files, on small data and a small network, where they are not."""
    found = []
    for file in sorted(SWEEPS.glob("*.yaml")):
        raw = yaml.safe_load(file.read_text())
        raw |= {"data": TINY["data"], "model": TINY["model"], "seeds": {"replicates": 1}}
        raw.setdefault("match", {})
        for name in ("augment", "stream_site", "samples"):
            raw["match"].pop(name, None)
        for section in ("dense", "imp", "sparse"):
            for name in ("first_resolution", "resolution_ramp"):
                raw.get(section, {}).pop(name, None)
        if "updates" in raw.get("mask", {}):
            raw["mask"]["updates"] = {"every": 5}
        if "search" in raw:
            raw["search"]["holdout"] = 20
        if isinstance(raw.get("analyses", {}).get("ensemble"), dict):
            raw["analyses"].pop("ensemble")
        found.append(raw)
    return [TINY, SEARCH, *found]


BASES = shipped()


def paths_of(entry: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key path that the schema knows, sections too."""
    for below in (entry, *entry.get("anyOf", [])):
        below = SCHEMA["$defs"][below["$ref"].rpartition("/")[2]] if "$ref" in below else below
        for name, inner in below.get("properties", {}).items():
            yield (*path, name)
            yield from paths_of(inner, (*path, name))


PATHS = sorted(set(paths_of(SCHEMA)))

STRINGS = [
    "", " ", "auto", "off", "yes", "~", "~/x", "~nobody/x", "$HOME", "$NO_SUCH/x", "${", "1/3", "1/0", "-1/3", "1e999999999",
    "nan", "0x10", "1_000", "../..", "/", "/x/../..", ".", "a\0b", "a\nb", "a\x1b[31mb", "a\u2028b", "é" * 300, "a" * 300,
    "a" * 10_000, "1" * 5_000, "s3:///x", "gs://", "ftp://x/y", "file:///x", "s3://u:p@b/c", "a:b", ":", "a:", ":a",
    "torchvision:", "torchvision:resnet18", "timm:", "math:pi", "mlp", "resnet20", "digits", "lth", "pi(A)", "pi^-1(B)",
    "{replicate}", "{replicate:9999999999}.pt", "{width.x}.pt", "{sparsity[0]}.pt", "{0}", "{", "x.safetensors",
    "sqlite:///x", "http://", "TPESampler", "GridSampler", "sparse.lr", "dense.epochs", "sparse", "name", "model.name",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, 7, 64, 65, 10**4, 10**6, 10**12, 10**18, 2**63 - 1, 2**63, 10**30, 10**200, -(10**18), -(10**30),
    0.0, 1.0, -0.0, 0.5, 0.3, 1e-9, 1e-300, 5e-324, 1 - 1e-16, 0.999999, 1e9, 1e18, 1e300, 1.7e308, -1e300, 2.5,
    float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.floats(),
    st.sampled_from(STRINGS),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.dates(date(1, 1, 1)),
    st.datetimes(datetime(1, 1, 2)),
)
KEYS = st.one_of(st.sampled_from(sorted({name for path in PATHS for name in path})), st.text(max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


def put(raw: dict[str, Any], path: tuple[Any, ...], value: object) -> None:
    """Set what is at a key path, whatever was on the way there."""
    for name in path[:-1]:
        below = raw.get(name)
        raw[name] = raw = dict(below) if isinstance(below, dict) else {}
    raw[path[-1]] = value


@st.composite
def changed_sweeps(draw: st.DrawFn, values: st.SearchStrategy[Any] = VALUES) -> str:
    """A sweep that can be, with one or a few of its settings changed to anything."""
    raw = copy.deepcopy(draw(st.sampled_from(BASES)))
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3)):
        put(raw, path, draw(values))
    return text_of(raw)


@fuzz(700)
@given(text=changed_sweeps())
def test_any_setting_may_have_any_value(text):
    check(text)


def test_sweeps_that_can_be_are_planned():
    for raw in BASES:
        ended = check(text_of(raw))
        assert (ended.status, ended.err) == (0, "")


@st.composite
def edges_of(draw: st.DrawFn, entry: dict[str, Any], path: tuple[str, ...]) -> Any:  # noqa: PLR0911
    """A value of the kind that the schema asks for, at the ends of what may be."""
    if "$ref" in entry:
        return draw(edges_of(SCHEMA["$defs"][entry["$ref"].rpartition("/")[2]], path))
    if "anyOf" in entry:
        return draw(edges_of(draw(st.sampled_from(entry["anyOf"])), path))
    if "enum" in entry or "const" in entry:
        return draw(st.sampled_from(entry.get("enum", [entry.get("const")])))
    kind = entry.get("type")
    if kind == "object":
        known = entry.get("properties", {})
        names = {*entry.get("required", []), *draw(st.lists(st.sampled_from(sorted(known)), max_size=3))} if known else set()
        return {name: draw(edges_of(known[name], (*path, name))) for name in sorted(names)}
    if kind == "array":
        inner = entry.get("items", {})
        least, many = entry.get("minItems", 0), draw(st.sampled_from([1, 1, 1, 2, 3, 50]))
        if "prefixItems" in entry:
            return [draw(edges_of(each, path)) for each in entry["prefixItems"]]
        return [draw(edges_of(inner, path)) for _ in range(max(least, many))]
    if kind in ("integer", "number"):
        ends = {entry[end] for end in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum") if end in entry}
        near = [end + step for end in ends for step in (-1, 0, 1, 1e-9, -1e-9)] + NUMBERS
        found = draw(st.one_of(st.sampled_from(near), st.floats(0, 1), st.integers(1, 100)))
        return int(found) if kind == "integer" and math.isfinite(found) else found
    return draw(st.sampled_from([True, False] if kind == "boolean" else STRINGS))


@st.composite
def sweeps_at_the_edge(draw: st.DrawFn) -> str:
    """A sweep with values of the right kinds, as large, small and many as they come."""
    raw = copy.deepcopy(draw(st.sampled_from(BASES)))
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3)):
        entry = SCHEMA
        for name in path:
            for below in (entry, *entry.get("anyOf", [])):
                below = SCHEMA["$defs"][below["$ref"].rpartition("/")[2]] if "$ref" in below else below
                if name in below.get("properties", {}):
                    entry = below["properties"][name]
                    break
        if len(path) == 1 and entry.get("type") != "integer" and draw(st.booleans()):
            continue
        put(raw, path, draw(edges_of(entry, path)))
    return text_of(raw)


@fuzz(400)
@given(text=sweeps_at_the_edge())
def test_values_at_the_edge_are_planned_or_refused(text):
    check(text)


def misspelt(draw: st.DrawFn, name: str) -> Any:
    """A name as it comes out of a hurry, or a key that is no name at all."""
    place = draw(st.integers(0, len(name) - 1))
    return draw(
        st.sampled_from(
            [
                name[:place] + name[place + 1 :],
                name[:place] + name[place] + name[place:],
                name[:place] + "\n" + name[place:],
                name.upper(),
                name.replace("_", "-") + " ",
                f"{name}.{name}",
                name * 50,
                7, 2.5, True, None, float("nan"), date(2024, 1, 1), b"\xff", "", "\0", "<<", "=",
            ]
        )
    )  # fmt: skip


@st.composite
def misspelt_sweeps(draw: st.DrawFn) -> str:
    """A sweep with a key that is misspelt, of another type, or there twice."""
    raw = copy.deepcopy(draw(st.sampled_from(BASES)))
    path = draw(st.sampled_from(PATHS))
    put(raw, (*path[:-1], misspelt(draw, path[-1])), draw(SCALARS))
    text = text_of(raw)
    if draw(st.booleans()):
        lines = text.split("\n")
        twice = draw(st.integers(0, len(lines) - 1))
        text = "\n".join([*lines[:twice], lines[twice], *lines[twice:]])
    return text


@fuzz(250)
@given(text=misspelt_sweeps())
def test_any_key_may_be_misspelt_or_there_twice(text):
    check(text)


PIECES = [
    "name: x", "\n", "\n  ", "\n- ", "\t", "\r\n", "\r", "\ufeff", "\x85", "\u2028", ": ", "? ", "- ", "{", "}", "[", "]",
    ", ", "'", '"', '"\\ud800"', '"\\U00110000"', '"\\0"', "|", ">", "|9", "#", "%YAML 9.9\n---\n", "%TAG ! !\n", "---\n",
    "\n---\n", "...\n", "&a ", "*a", "&a [*a]", "&a {x: *a}", "<<: *a", "<<: [*a, *a]", "<<: 3",
    "!!python/object/apply:os.system [echo]", "!!python/name:os.system", "!!binary ", "!!binary =", "!!set {a, b}",
    "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp x", "!!int x", "!!int ''", "!!float x", "!!bool x", "!!null x",
    "!!str {a: 1}", "!!map [1]", "!!seq {a: 1}", "!x ", "! ", "=", "2024-99-99", "2024-01-01",
    "2001-12-14t21:59:43.10-99:99", "0x", "0x" + "f" * 5_000, "9" * 5_000, "1:99:99", "0b", "0o7", "190:20:30.15",
    "1" + ":59" * 300 + ".5", ".inf", "-.NaN", "1e999", "@", "`", "\0", "\x07", "é", "😀", "a" * 5_000, "~", "null",
    "dense: ", "sparse:\n  lr: ", "? [a, b]\n: c", "? {a: b}\n: c", "seeds: {base: ", "search: ", "storage: ",
]  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """Text that may be YAML: a sweep with something put in, or pieces alone, in any encoding."""
    pieces = "".join(draw(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=8)))
    text = pieces
    if draw(st.booleans()):
        text = text_of(draw(st.sampled_from(BASES)))
        at = draw(st.integers(0, len(text)))
        text = text[:at] + pieces + text[at:]
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"]))
    return text.encode(encoding, "replace")


@fuzz(450)
@given(content=st.one_of(texts(), texts(), texts(), st.binary(max_size=200)))
def test_any_text_may_be_a_sweep_file(content):
    check(content)


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """What may be typed behind the file; a word that starts with - is an option's."""
    path = list(draw(st.sampled_from(PATHS)))
    if draw(st.integers(0, 3)) == 0:
        path[draw(st.integers(0, len(path) - 1))] = draw(st.one_of(KEYS, st.sampled_from(["0", "", "\n", "<<", "a" * 500])))
    value = draw(st.one_of(st.sampled_from(PIECES), st.text(max_size=10), VALUES.map(as_typed)))
    word = ".".join(path) + draw(st.sampled_from(["="] * 9 + [""])) + value
    return f"x{word}" if word.startswith("-") else word


def as_typed(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()


@fuzz(350)
@given(words=st.lists(overrides(), min_size=1, max_size=3))
def test_any_word_may_be_an_override(words):
    check(text_of(TINY), tuple(words))


BAD_TEXTS = {  # what was met once, each of a kind
    "aliases of aliases": "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(30)),
    "merges of merges": "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" if i else "a0: &a0 {x: 1}\n" for i in range(30)
    ),
    "a chain of aliases": "".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else 'x'}]\n" for i in range(1_000)),
    "a cycle": "name: &a [*a]\n",
    "a cycle in a key": "? &a [*a]\n: 1\n",
    "1,000 levels": "name: " + "[" * 1_000 + "]" * 1_000,
    "1,000 levels of blocks": "- " * 1_000 + "x",
    "two documents": "name: x\n---\nname: y\n",
    "no date": "name: 2024-99-99\n",
    "no number": "name: !!int ''\n",
    "no truth": "name: !!bool x\n",
    "no time": "name: !!timestamp x\n",
    "a number of many digits": "seeds: {base: 0x" + "f" * 5_000 + "}\n",
    "sexagesimal digits beyond a float": "name: 1" + ":59" * 300 + ".5\n",
    "an unpaired surrogate": 'name: "\\ud800"\n',
    "no character": 'name: "\\U00110000"\n',
    "NUL": "name: \0\n",
    "UTF-16": "name: x\n".encode("utf-16"),
    "a set, whose order differs from run to run": "match: {method: !!set {activation, weight}}\n",
    "a key of several lines": '"na\\nme": x\n',
    "Python": "name: !!python/object/apply:os.system [echo]\n",
}
BAD_WORDS = [  # and on the command line
    "seeds.replicates=1000000000000",
    "seeds.base=-9223372036854775809",
    "dense.epochs=1000000000000000000000000000000",
    "imp.prune_fraction=0.00001",
    "resources.dense.gpus=1.7e+308",
    "resources.dense.gpus=5e-324",
    "resources.dense.gpus=.inf",
    "resources.match.gpus=1e999999999",
    "resources.dense.workers=1000000000000",
    'data.root="a\\0b"',
    'storage="a\\nb"',
    'resources.staging="a\\0b"',
    "analyses.ensemble={members: 100000, repeats: 100000}",
    "model.widths=[" + ", ".join(str(number / 8) for number in range(1, 500)) + "]",
    "dense.lr=[",
    "dense." * 1_000 + "lr=1",
]
BAD_SEARCHES = [
    "sparse.mask_from='{replicate.x}.pt'",
    "sparse.mask_from='{replicate:9999999999}.pt'",
    "sparse.mask_from='{replicate[0]}.pt'",
    "search.repeats=1000000000000",
    "search.sampler.settings={x: !!binary gIGC}",
    "search.start=[{sparse.lr: !!binary gIGC}]",
    "search.space={sparse.lr: {type: float, low: 1.0e-300, high: 1, step: 1.0e-320}}",
    "search.sampler={name: CmaEsSampler, settings: {seed: []}}",
]


@pytest.mark.parametrize("content", BAD_TEXTS.values(), ids=list(BAD_TEXTS))
def test_what_no_sweep_file_holds_is_refused_at_its_line(content):
    assert check(content).status == 2


@pytest.mark.parametrize(
    ("base", "word"), [*((TINY, word) for word in BAD_WORDS), *((SEARCH, word) for word in BAD_SEARCHES)]
)
def test_what_no_sweep_can_be_is_refused_in_a_line(base, word):
    ended = check(text_of(base), (word,))
    assert (ended.status, ended.err.count("\n")) == (2, 1)


def test_large_plans_are_made_and_larger_ones_refused():
    assert check(text_of(SEARCH | {"search": None}), ("seeds.replicates=1000",)).status == 0
    ended = check(text_of(SEARCH), ("search.repeats=1000", "search.replicates=100"))
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith("command line: search.repeats: 1,000 repeats of ")
    sparse = "{sparsities: [" + ", ".join(f"{number / 2_000:.4f}" for number in range(1, 2_000)) + "]}"
    ended = check(text_of(SEARCH | {"search": None}), (f"sparse={sparse}", "seeds.replicates=20"))
    assert ended.err.startswith(
        "command line: sparse.sparsities: 20 pairs of networks (replicates x widths) with 5,997 stages"
    )


def test_a_network_beyond_memory_is_planned_and_not_built(monkeypatch):
    monkeypatch.setattr(network_checks, "check_network", lambda *_: pytest.fail("it was built"))
    assert check(text_of(TINY), ("model.widths=[64]",)).status == 0


def test_an_override_leaves_other_keys_alone_that_are_aliases_of_the_same_settings():
    shared = "name: a\ndata: {name: digits}\nmodel: {name: mlp}\nimp: &both {lr: 0.1}\nsparse: *both\n"
    assert check(shared, ("sparse.rewinds=[0]",)).status == 0
