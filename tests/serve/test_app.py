"""The server: who may read, what costs nothing, stores in buckets, and the command with its mistakes."""

import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from raylth.serve.command import main
from raylth.store import locate
from tests.serve import stores
from tests.serve.conftest import serving
from tests.serve.stores import BEGUN, LIVE, OLD, PARTS, STUDY

PATHS = ["/", "/sweeps.json", f"/runs/{STUDY}", f"/runs/{STUDY}/data.json", "/static/page.js"]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_shown_without_the_token(served, path):
    for query in ("", "?token=", "?token=" + "x" * 43, f"?token={served.token[:-1]}"):
        status, headers, body = served.get(path + query, with_cookie=False)
        assert status == 403
        assert body.decode().count("\n") == 1
        assert "token" in body.decode()
        assert "Set-Cookie" not in headers
    assert served.get(path, with_cookie=False, Cookie=f"{served.app.cookie}=wrong")[0] == 403


def test_the_token_in_the_address_becomes_a_cookie(served):
    status, headers, _ = served.get(f"/?token={served.token}", with_cookie=False)
    assert status == 200
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert set(attributes) == {"Path=/", "HttpOnly", "SameSite=Strict"}
    assert served.get("/sweeps.json", with_cookie=False, Cookie=cookie)[0] == 200
    assert "Set-Cookie" not in served.get("/")[1]


def test_tokens_are_compared_in_constant_time(served, monkeypatch):
    from raylth.serve import guard

    asked = []
    monkeypatch.setattr(guard.secrets, "compare_digest", lambda one, other: asked.append((one, other)) or False)
    assert served.get("/")[0] == 403
    assert (served.token.encode(), served.token.encode()) in asked


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_page_is_read_only(served, method):
    status, headers, _ = served.get("/sweeps.json", method=method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert served.get("/sweeps.json", method=method, with_cookie=False)[0] == 403


def test_a_served_store_is_not_written_to(tmp_path):
    store = locate(tmp_path)
    stores.fill(store)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with serving(store) as served:
        for path in (*PATHS, f"/runs/{STUDY}/figures.json", f"/runs/{STUDY}/curves/1.0-0.9-10.json"):
            assert served.get(path)[0] == 200
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_every_answer_forbids_what_comes_from_elsewhere(served, path):
    _, headers, body = served.get(path)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert not re.search(rb"""(?:src|href)=["'](?:https?:)?//""", body), "no other host is named"


@pytest.mark.parametrize("run", [STUDY, LIVE, OLD, PARTS])
def test_every_run_has_its_page(served, run):
    for part in ("", "/progress.json", "/data.json", "/figures.json"):
        status, _, body = served.get(f"/runs/{run}{part}")
        assert status == 200, body
    assert json.loads(served.get(f"/runs/{run}/progress.json")[2])["run"] == run


@pytest.mark.parametrize(
    "path", ["/runs/none", f"/runs/{BEGUN}", "/runs/..", "/runs/%2e%2e/data.json", "/runs/..%2f/data.json", "/static/app.py",
             "/static/..%2fapp.py", f"/runs/{STUDY}/curves/no.json", f"/runs/{STUDY}/manifest.json"]
)  # fmt: skip
def test_what_is_not_there_is_one_line(served, path):
    status, _, body = served.get(path)
    assert status == 404
    assert body.decode().count("\n") <= 1
    assert b"Traceback" not in body


def test_an_idle_page_costs_nothing(tmp_path, monkeypatch):
    from raylth.serve import app

    store, made = locate(tmp_path), []
    stores.write_study(store)
    make = app.run_data
    monkeypatch.setattr(app, "run_data", lambda run: made.append(run.name) or make(run))
    path = f"/runs/{STUDY}/data.json"
    with serving(store) as served:
        _, headers, body = served.get(path)
        for _ in range(3):
            status, again, nothing = served.get(path, If_None_Match=headers["ETag"])
            assert (status, again["ETag"], nothing) == (304, headers["ETag"], b"")
        assert served.get(path)[2] == body
        assert made == [STUDY], "made once"
        rows = stores.study_rows(STUDY)
        rows[20]["test_accuracy"] = 99.0
        stores.write_study(store, rows=rows)
        status, other, changed = served.get(path, If_None_Match=headers["ETag"])
        assert (status, made) == (200, [STUDY, STUDY])
        assert other["ETag"] != headers["ETag"]
        assert changed != body
        progress = f"/runs/{STUDY}/progress.json"
        tag = served.get(progress)[1]["ETag"]
        assert served.get(progress, If_None_Match=tag)[0] == 304
        stores.write_json(store / "runs" / STUDY / "status.json", stores.status_of("running"))
        assert served.get(progress, If_None_Match=tag)[0] == 200


def test_plotly_comes_from_its_package_and_is_kept(served):
    (name,) = re.findall(r"static/(plotly-[\d.]+\.min\.js)", served.get(f"/runs/{STUDY}")[2].decode())
    status, headers, body = served.get(f"/static/{name}", Accept_Encoding="gzip")
    assert status == 200
    assert "immutable" in headers["Cache-Control"]
    assert b"plotly.js v" in gzip.decompress(body)[:200]
    assert len(body) < 2_000_000


def test_a_store_in_a_bucket_is_served(bucket_servers):
    store = locate(bucket_servers["s3"].url("served"))
    stores.write_study(store)
    with serving(store) as served:
        page = served.get("/")[2].decode()
        assert "s3://bucket/served" in page
        assert "endpoint_override" not in page
        assert [run["run"] for run in json.loads(served.get("/sweeps.json")[2])] == [STUDY]
        _, headers, body = served.get(f"/runs/{STUDY}/data.json")
        assert len(json.loads(body)["accuracy"]["mean"]) == 36
        assert served.get(f"/runs/{STUDY}/data.json", If_None_Match=headers["ETag"])[0] == 304


def test_a_store_that_does_not_answer_is_one_line(served, monkeypatch):
    from raylth.serve import app
    from raylth.store import StorageUnreachable

    def silent(store):
        raise StorageUnreachable("s3://bucket: no answer")

    monkeypatch.setattr(app, "sweeps_of", silent)
    status, _, body = served.get("/sweeps.json")
    assert (status, body) == (503, b"503: the store does not answer: s3://bucket: no answer\n")


def test_the_command_serves_until_ctrl_c(store):
    words = [sys.executable, "-m", "raylth.serve", str(store)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", url)
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert b"Sweeps" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("run", [STUDY, LIVE, BEGUN])
@pytest.mark.parametrize("form", ["absolute", "slash", "relative", "here"])
def test_a_run_is_served_with_its_store_and_opened(store, run, form, capsys, monkeypatch):
    import uvicorn

    from raylth.serve import app

    folder, made = store.path / "runs" / run, []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    monkeypatch.setattr(app, "make_app", lambda place, token: made.append(place))
    monkeypatch.chdir(folder if form == "here" else folder.parent)
    words = {"absolute": str(folder), "slash": f"{folder}/", "relative": run, "here": "."}
    assert main([words[form]]) == 0
    assert re.fullmatch(rf"http://127\.0\.0\.1:\d+/runs/{run}\?token=[\w-]{{43}}\n", capsys.readouterr().out)
    assert list(map(str, made)) == [str(store.absolute())]


def test_a_run_in_a_bucket_is_opened(bucket_servers, capsys, monkeypatch):
    import uvicorn

    place = locate(bucket_servers["s3"].url("opened"))
    stores.write_study(place)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    address, _, options = str(place).partition("?")
    assert main([f"{address}/runs/{STUDY}?{options}"]) == 0
    assert f"/runs/{STUDY}?token=" in capsys.readouterr().out
    assert main([f"{address}?{options}"]) == 0
    assert "/?token=" in capsys.readouterr().out


def test_a_folder_that_is_no_store_is_one_line(store, tmp_path, capsys, monkeypatch):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    (tmp_path / "photographs" / "one").mkdir(parents=True)
    none = "no store here; expected a folder or a bucket that a sweep writes to (`storage` in its file)"
    for folder in (tmp_path / "photographs", store.path / "runs" / STUDY / "manifest.json"):
        assert main([str(folder)]) == 2
        assert capsys.readouterr().err == f"{folder}: {none}\n"
    assert main([str(store.path / "runs")]) == 2
    assert capsys.readouterr().err == f"{store.path}/runs: the runs of a store: name the store itself, {store.absolute()}\n"
    (tmp_path / "new").mkdir()
    assert main([str(tmp_path / "new")]) == 0, "a sweep may begin there"


def test_mistakes_are_one_line(tmp_path, store, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert "no store here; expected a folder" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(store), "--port", str(port)]) == 2
        error = capsys.readouterr().err
        assert error == f"--host 127.0.0.1, --port {port}: Address already in use\n"
    assert main([str(store), "--host", "nowhere.invalid"]) == 2
    assert capsys.readouterr().err.startswith("--host nowhere.invalid, --port 0: ")
    with pytest.raises(SystemExit):
        main([str(store), "--port", "99999"])
    assert "should be a number from 0 to 65535, found '99999'" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_a_host_that_others_reach_is_warned_of(store, host, warns, capsys, monkeypatch):
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    assert main([str(store), "--host", host]) == 0
    told = capsys.readouterr()
    assert ("not encrypted" in told.err) is warns
    assert host not in told.out or not warns, "an address that other machines can open"


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "plotly"])
def test_the_extra_that_is_missing_is_named(store, missing):
    code = f"""
import importlib.metadata, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {missing!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
version = importlib.metadata.version
def absent(name):
    if name == {missing!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = absent
from raylth.serve.command import main
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(store)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"the package {missing}[\w.]* is not installed: pip install 'raylth\[serve\]'\n", done.stderr)
