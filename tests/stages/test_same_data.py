"""Data that changed under a store: noticed before anything is trained or counted as done, and never averaged."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raylth.cli import dry_run
from raylth.cli import sweep as sweep_command
from raylth.core.data import DATASETS, ArrayDataset, DataError, DatasetInfo, MissingData, cifar
from raylth.report import load_results
from raylth.report.tables import accuracy_table
from raylth.stages import load_same_data, make_plan, result_rows, run_plan, scan
from raylth.store import Store
from raylth.store.tables import write_table
from tests.conftest import tiny_sweep
from tests.core.data.test_data import jpeg

TINY = {
    "dense": {"epochs": 2}, "match": {"epochs": [2]},
    "sparse": {"arms": ["lth", "naive", "permuted"], "sparsities": [0.3], "rewinds": [0]},
}  # fmt: skip


def blobs(seed):
    draws = np.random.default_rng(seed)
    y = draws.integers(0, 3, 90)
    x = draws.normal(size=(90, 8)).astype("float32") + np.eye(3, 8, dtype="float32")[y] * 4
    return {"train_x": x[:60], "train_y": y[:60], "test_x": x[60:], "test_y": y[60:]}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A data set in one file, and what writes it anew."""
    file = tmp_path / "blobs.npz"

    def load(root):
        with np.load(root) as arrays:
            return ArrayDataset(**arrays)

    info = DatasetInfo((8,), 3, num_train=60, num_test=30, augment="none", from_files=True, load=load)
    monkeypatch.setitem(DATASETS._entries, "own:blobs", info)
    np.savez(file, **blobs(0))
    return file


def sweep(file, **changes):
    return tiny_sweep(
        **{**TINY, "data": {"name": "own:blobs", "root": str(file), "num_train": None, "num_test": None}, **changes}
    )


def test_changed_data_are_refused_before_anything_is_counted_as_done(own, tmp_path):
    store = Store(tmp_path / "store")
    config = sweep(own, storage=str(tmp_path / "store"))
    plan = make_plan(config)
    assert set(run_plan(plan, store).states.values()) == {"done"}
    before = sorted((tmp_path / "store").rglob("*"))
    np.savez(own, **blobs(0))  # written again, the same
    assert run_plan(plan, store).num_computed == 0
    np.savez(own, **blobs(1))
    more = make_plan(config.model_copy(update={"seeds": config.seeds.model_copy(update={"replicates": 2})}))
    longer = make_plan(sweep(own, storage=str(tmp_path / "store"), sparse={**TINY["sparse"], "sparsities": [0.3, 0.6]}))
    for each in (plan, more, longer):
        with pytest.raises(DataError) as caught:
            run_plan(each, store)
        told = str(caught.value)
        assert told.startswith("data.root: the data of own:blobs have changed: ")
        assert (
            f" of the sweep's {len(each.stages)} stages are in {tmp_path}/store already, made, last on {time.strftime('%Y-')}"
            in told
        )
        assert "restore the old data, or train from the new ones in another storage" in told
        assert "\n" not in told
    assert sorted((tmp_path / "store").rglob("*")) == before, "nothing was made or set aside"
    assert set(run_plan(plan, Store(tmp_path / "other")).states.values()) == {"done"}
    np.savez(own, **blobs(0))
    assert set(run_plan(more, store).states.values()) == {"done"}, "the old data again"


@pytest.mark.parametrize(
    "change", ["one value", "two labels", "the order", "one split into the other", "how it is normalised"]
)
def test_any_change_is_noticed(own, tmp_path, monkeypatch, change):
    store, plan = Store(tmp_path / "store"), make_plan(sweep(own))
    graph = run_plan(plan, store)
    assert graph.finished
    arrays = blobs(0)
    if change == "one value":
        arrays["test_x"][3, 3] += 1e-3
    elif change == "two labels":
        arrays["train_y"][[0, 1]] = (
            arrays["train_y"][[1, 0]] if len(set(arrays["train_y"][:2])) > 1 else 2 - arrays["train_y"][[0, 1]] // 2
        )
    elif change == "the order":
        order = np.roll(np.arange(60), 1)
        arrays |= {"train_x": arrays["train_x"][order], "train_y": arrays["train_y"][order]}
    elif change == "one split into the other":
        arrays["train_x"][:30], arrays["train_y"][:30] = arrays["test_x"], arrays["test_y"]
    else:
        arrays |= {"mean": np.full(8, 1.0), "std": np.ones(8)}
    np.savez(own, **arrays)
    with pytest.raises(DataError, match="have changed: "):
        load_same_data(plan, scan(plan, store), store)


def test_a_part_that_did_not_change_is_still_the_same(own, tmp_path):
    """A sweep that takes 20 of the samples does not depend on the others' values."""
    store = Store(tmp_path / "store")
    plan = make_plan(sweep(own, data={"name": "own:blobs", "root": str(own), "num_train": 20, "num_test": 10}))
    run_plan(plan, store)
    from raylth.core.data.subset import stratified_order

    arrays = blobs(0)
    arrays["train_x"][stratified_order(arrays["train_y"], "train")[30]] += 1
    np.savez(own, **arrays)
    assert run_plan(plan, store).num_computed == 0


def test_diverged_trainings_and_those_of_one_broken_artefact_count_too(own, tmp_path):
    store = Store(tmp_path / "store")
    plan = make_plan(sweep(own, dense={"epochs": 3, "lr": 900.0, "batch_size": 8}))
    graph = run_plan(plan, store)
    assert "diverged" in graph.states.values()
    np.savez(own, **blobs(1))
    with pytest.raises(DataError, match="2 of the sweep's"):
        run_plan(plan, store)


def test_missing_data_are_reported_and_finished_results_are_shown(own, tmp_path):
    store, plan, told = Store(tmp_path / "store"), make_plan(sweep(own)), []
    run_plan(plan, store)
    own.unlink()
    assert load_same_data(plan, scan(plan, store), store, told.append) is None
    assert "No such file or directory" in told[0]
    assert run_plan(plan, store).num_computed == 0
    store.set_aside(plan.stages[-1].key)
    with pytest.raises(MissingData, match="No such file or directory"):
        run_plan(plan, store)


@pytest.fixture
def few(tmp_path, monkeypatch):
    """A folder of a few CIFAR-10 images in Parquet, and how often they were decoded."""
    decoded = []
    read = cifar._read_parquet
    monkeypatch.setattr(cifar, "_read_parquet", lambda *words: (decoded.append(words[2]), read(*words))[1])

    def write(seed, shift=0):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
        for split in ("train", "test"):
            rows = [{"bytes": jpeg(each), "path": None} for each in pixels]
            table = pa.table({"img": rows, "label": [(n + shift) % 10 for n in range(40)]})
            plain = {"use_dictionary": False, "compression": "none"}  # as many bytes, whatever the labels
            pq.write_table(table, tmp_path / f"{split}-0.parquet", **plain)

    write(0)
    return tmp_path, decoded, write


def test_files_that_were_hashed_are_not_read_again_until_they_change(few):
    folder, decoded, write = few
    config = tiny_sweep(
        data={"name": "cifar10", "root": str(folder), "layout": "parquet", "num_train": 40, "num_test": 40},
        model={"name": "mlp", "widths": [0.25]}, storage=str(folder / "store"), **TINY,
    )  # fmt: skip
    store, plan = Store(folder / "store"), make_plan(config)
    assert set(run_plan(plan, store).states.values()) == {"done"}
    assert decoded == ["train", "test"]
    assert run_plan(plan, store).num_computed == 0
    assert decoded == ["train", "test"], "sizes and times are those that were hashed"
    (remembered,) = (folder / "store/data").iterdir()
    for harm in (b"{}", b"not JSON", json.dumps({"data_sha256": None}).encode()):
        remembered.write_bytes(harm)
        if harm.startswith(b'{"'):
            continue
        assert run_plan(plan, store).num_computed == 0, "it is hashed again"
    remembered.unlink()
    assert run_plan(plan, store).num_computed == 0
    before = {file: os.stat(file) for file in folder.glob("*.parquet")}
    write(0, shift=1)
    for file, stat in before.items():
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert os.stat(file).st_size == stat.st_size, "as a copy that keeps times leaves it"
    with pytest.raises(DataError, match=r"^data.root: the data of cifar10 have changed"):
        run_plan(plan, store)
    with pytest.raises(DataError, match="have changed"):
        dry_run.print_plan(config)
    assert [file.name for file in (folder / "store/data").iterdir()] == [remembered.name]


def test_no_average_mixes_data_of_two_kinds(own, tmp_path):
    """Rows of old and new data in one store, as older versions wrote them."""
    store, rows = Store(tmp_path / "store"), []
    for number in range(2):
        np.savez(own, **blobs(number))
        plan = make_plan(sweep(own, seeds={"replicates": number + 1}))
        apart = Store(tmp_path / f"store{number}")
        found = result_rows(plan, run_plan(plan, apart), apart, f"r-{number}")["results"]
        rows.append([row for row in found if row["replicate"] == number])
    for number, some in enumerate(rows):
        write_table(store.root, "results", f"r-{number}", some, {})
    with pytest.raises(ValueError, match=r"r-0 and r-1 were made from different data, so their networks are no replicates"):
        accuracy_table(load_results(store.root))
    write_table(store.root, "results", "r-0", [{**row, "run": "r-0"} for some in rows for row in some], {})
    (tmp_path / "store/results/r-1.parquet").unlink()
    with pytest.raises(ValueError, match="networks of r-0 were made from different data: train it anew in another storage"):
        accuracy_table(load_results(store.root))
    write_table(store.root, "results", "r-0", rows[1], {})
    assert len(accuracy_table(load_results(store.root))) == 3


def test_every_kind_of_row_says_from_which_data_it_is(own, tmp_path):
    store = Store(tmp_path / "store")
    lines = {"points": 3, "corrections": ["plain"], "samples": 30}
    plan = make_plan(sweep(own, connect=lines, analyses={"overlap": {}}))
    rows = result_rows(plan, run_plan(plan, store), store, "r")
    for table in ("results", "permutations", "barriers", "lines", "masks"):
        assert rows[table]
        assert {row["data_sha256"] for row in rows[table]} == {
            load_same_data(plan, scan(plan, Store(tmp_path / "new")), store).fingerprint()
        }


MODULE = """
import os
import numpy as np
from raylth.core.data import ArrayDataset, DatasetInfo


def load(root):
    with np.load(root) as arrays:
        return ArrayDataset(**arrays)


blobs = DatasetInfo((8,), 3, num_train=60, num_test=30, augment="none", from_files=True, load=load)
drawn = DatasetInfo((8,), 3, num_train=60, num_test=30, augment="none", from_files=False, load=lambda: make())


def make():
    x, y = np.random.normal(size=(90, 8)), np.arange(90) % 3
    return ArrayDataset(x[:60], y[:60], x[60:], y[60:])


wrong = DatasetInfo((8,), 3, num_train=60, num_test=30, augment="none", from_files=False,
                    load=lambda **_: ArrayDataset([[0] * 8] * 60, [1, 2, 3] * 20, [[0] * 8] * 30, [1] * 30))
"""


def test_the_command_refuses_changed_and_wrong_data_with_one_line_and_makes_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "mydata.py").write_text(MODULE)
    np.savez(tmp_path / "blobs.npz", **blobs(0))
    settings = {
        "name": "own", "storage": "store", "seeds": {"replicates": 1},
        "data": {"import": "mydata:blobs", "root": "blobs.npz"},
        "model": {"name": "mlp", "widths": [0.25]}, "imp": {"epochs_per_round": 1}, **TINY,
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*words):
        status = sweep_command.main(["own.yaml", *words])
        return status, *capsys.readouterr()

    wrong = 'data={"name": "mydata:wrong"}'
    try:
        for words in ([wrong], [wrong, "--dry-run"]):
            status, out, errors = run(*words)
            line = (
                "command line: data.name: mydata:wrong: train_y has labels from 1 to 3 (label 2 is 3), and its 3 classes are "
            )
            assert (status, errors) == (2, f"{line}0 to 2; subtract 1\n"), out
            assert not (tmp_path / "store").exists()
        words = [sys.executable, "-m", "raylth.sweep", "own.yaml"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "nothing to train" in run()[1]
        np.savez(tmp_path / "blobs.npz", **blobs(1))
        shutil.copytree(tmp_path / "store", tmp_path / "before")
        for words in ([], ["--dry-run"], ["seeds.replicates=3"]):
            status, out, errors = run(*words)
            assert status == 2, out + errors
            assert errors.startswith("own.yaml:")
            assert ": data.root: the data of mydata:blobs have changed: " in errors
            assert errors.count("\n") == 1
            assert "nothing to train" not in out
        assert subprocess.run(["diff", "-r", "store", "before"], check=False).returncode == 0
        assert run("storage=fresh", "seeds.replicates=2", "--dry-run")[0] == 0, "as the line says"
    finally:
        sys.modules.pop("mydata", None)
        DATASETS._found.clear()


def test_a_load_that_draws_without_a_seed_is_reported(tmp_path, monkeypatch):
    (tmp_path / "drawndata.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        plan = make_plan(tiny_sweep(**TINY, data={"name": "drawndata:drawn", "num_train": None, "num_test": None}))
        run_plan(plan, Store(tmp_path / "store"))
        with pytest.raises(DataError, match=r"nothing was changed\? then its load\(\) draws without a fixed seed"):
            run_plan(plan, Store(tmp_path / "store"))
    finally:
        sys.modules.pop("drawndata", None)
        DATASETS._found.clear()
