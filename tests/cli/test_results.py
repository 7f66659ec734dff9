"""The command that asks a store in SQL: what it answers is what pandas says of the same files."""

import io
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from raylth.cli.results import main
from raylth.driver.run_record import Recorder, Run
from raylth.report import load_curves, load_permutations, load_results
from raylth.report.sql import LOADERS, TABLES
from raylth.stages import make_plan, run_plan, scan
from raylth.store import Store, locate
from raylth.store.tables import DATASETS, append_rows, compact_table
from tests.conftest import tiny_sweep


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two runs of a sweep, which share most of their networks, in one store."""
    store = Store(tmp_path_factory.mktemp("store"))
    for arms in (["lth", "naive"], ["lth", "naive", "random"]):
        config = tiny_sweep(sparse={"arms": arms, "sparsities": [0.5]}, match={"epochs": None})
        plan = make_plan(config)
        graph = run_plan(plan, store)
        Recorder(Run.open(config, store), plan, graph).close()
    return store.root.path


def answer(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def frame(capsys, *arguments):
    return pd.read_csv(io.StringIO(answer(capsys, *arguments, "--csv", "-")))


def refusal(capsys, *arguments):
    """The one line that a command ends with."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_every_dataset_has_a_table():
    assert set(LOADERS) == set(TABLES) == {*DATASETS, "arms"}


def test_an_aggregate_is_pandas(store, capsys):
    measures = "count(*) AS n, avg(test_accuracy) AS mean, stddev(test_loss) AS sd"
    told = frame(capsys, store, f"SELECT arm, {measures} FROM results GROUP BY arm ORDER BY arm")
    results = load_results(store)
    grouped = results.groupby("arm", dropna=False)
    expected = pd.DataFrame({
        "n": grouped.size(), "mean": grouped["test_accuracy"].mean(), "sd": grouped["test_loss"].std(),
    }).reset_index()  # fmt: skip
    assert expected["n"].sum() == len(results) > 8
    pd.testing.assert_frame_equal(told, expected, check_dtype=False)


def test_tables_join_and_a_network_of_two_runs_counts_once(store, capsys):
    sql = (
        "SELECT count(*) AS points, min(train_loss) AS least FROM curves JOIN (SELECT DISTINCT key FROM Results) USING (key)"
    )
    told = frame(capsys, store, sql)
    curves = load_curves(store)
    assert told["points"].item() == len(curves)
    assert told["least"].item() == curves["train_loss"].min()


def test_csv_reads_back_as_it_was(store, capsys, tmp_path):
    file = tmp_path / "all.csv"
    assert answer(capsys, store, "SELECT * FROM results", "--csv", file) == ""
    assert "None" not in file.read_text(), "what is missing is empty"
    told, expected = pd.read_csv(file), load_results(store)
    assert list(told.columns) == DATASETS["results"].names
    for column in ("test_accuracy", "sparsity", "rewind_epoch", "landing", "seconds"):
        assert told[column].isna().tolist() == expected[column].isna().tolist()
        assert told[column].dropna().tolist() == expected[column].dropna().tolist(), "to the last digit"
    assert told["key"].tolist() == expected["key"].tolist()


def test_a_runs_folder_is_that_run(store, capsys):
    counts = {
        run.name: frame(capsys, run, "SELECT count(*) AS n FROM results")["n"].item() for run in (store / "runs").iterdir()
    }
    assert counts == {run: len(load_results(store / "runs" / run)) for run in counts}
    assert len(set(counts.values())) == 2


def test_rows_of_a_sweep_that_still_runs_are_there(capsys, tmp_path):
    for status in ("failed", "done"):  # a stage's later rows replace its earlier ones
        append_rows(locate(tmp_path), "results", "r-1", [{"key": "a", "run": "r-1", "sweep": "r", "status": status}], {})
    assert frame(capsys, tmp_path, "SELECT status FROM results")["status"].tolist() == ["done"]


def test_only_the_tables_that_are_named_are_read(store, capsys, monkeypatch):
    monkeypatch.setitem(LOADERS, "curves", lambda place: pytest.fail("read"))
    assert frame(capsys, store, "SELECT count(*) AS n FROM results")["n"].item()


def test_an_absent_table_is_empty_with_its_columns(capsys, tmp_path):
    append_rows(locate(tmp_path), "results", "r-1", [{"key": "a", "run": "r-1", "sweep": "r"}], {})
    told = frame(capsys, tmp_path, "SELECT * FROM ensembles")
    assert len(told) == 0
    assert list(told.columns) == DATASETS["ensembles"].names


def test_a_table_shows_200_rows_and_says_how_many_more(store, capsys):
    shown = answer(capsys, store, "SELECT range AS number, 'a [b] c [/]' AS text, NULL AS nothing FROM range(1234)")
    assert "199" in shown
    assert " 200 " not in shown
    assert "a [b] c [/]" in shown
    assert "and 1,034 more rows (--csv writes all)" in shown
    assert "more" not in answer(capsys, store, "SELECT * FROM range(200)")


def test_a_narrow_terminal_shows_the_columns_that_fit_and_names_the_others(store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    everything = answer(capsys, store, "SELECT * FROM results")
    assert "data_sha256" in everything.splitlines()[1], "a file or a pipe has room"
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = answer(capsys, store, "SELECT key, stage, arm, test_accuracy, status, device FROM results WHERE arm = 'lth'")
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    assert max(len(line) for line in plain) <= 60
    assert plain[-1] == "and 2 more columns: status, device"
    assert "test_accuracy" in plain[1]
    (key,) = load_results(store).query("arm == 'lth' and rewind_epoch == 0")["key"]
    assert f"{key[:19]}…" in "".join(plain)


def test_without_sql_tables_columns_and_rows_are_listed(store, capsys):
    listed = answer(capsys, store)
    for name, schema in DATASETS.items():
        assert name in listed
        assert schema.names[-1] in listed
    assert f" {len(load_curves(store))} " in listed


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC", 'Parser Error: syntax error at or near "SELEC"'),
        ("SELECT nope FROM results", 'Binder Error: Referenced column "nope" not found in FROM clause! Candidate bindings'),
        ("SELECT * FROM nope", "Catalog Error: Table with name nope does not exist!"),
        (" ", "the SQL asks nothing"),
        ("SELECT * FROM table", "Parser Error"),
    ],
)
def test_bad_sql_is_one_line(store, capsys, sql, said):
    assert refusal(capsys, store, sql).startswith(said)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('{}')",
        "SELECT * FROM '{}'",
        "COPY results TO '{}'",
        "ATTACH '{}'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
    ],
)
def test_a_query_reaches_no_file(store, capsys, tmp_path, sql):
    file = tmp_path / "a.csv"
    file.write_text("secret\n1\n")
    refusal(capsys, store, sql.format(file))
    assert file.read_text() == "secret\n1\n"


def test_no_store_is_one_line(store, capsys, tmp_path):
    for place in (tmp_path, tmp_path / "none", store / "runs/none-0"):
        assert refusal(capsys, place, "SELECT 1").startswith(f"{place}: no results here; expected ")
        assert refusal(capsys, place).startswith(f"{place}: no results here; expected ")
    assert "ftp:// is unknown" in refusal(capsys, "ftp://host/store")


def test_without_duckdb_the_line_says_what_to_install(store, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert refusal(capsys, store, "SELECT 1") == "the package duckdb is not installed: pip install 'raylth[sql]'\n"
    assert "curves" in answer(capsys, store), "the list needs none"


def test_csv_that_cannot_be_written_is_one_line(store, capsys, tmp_path):
    assert str(tmp_path) in refusal(capsys, store, "SELECT 1", "--csv", tmp_path)


def test_help_begins_with_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.index("examples:") < shown.index("options:")


def test_the_guides_queries_run(store, tmp_path, monkeypatch):
    """Word for word, from a folder in which `raylth-store` is the store."""
    text = (Path(__file__).parents[2] / "docs/guides/results.md").read_text()
    queries = re.findall(r'^python -m raylth\.results raylth-store "(.*?)"( --csv (\S+))?$', text, re.MULTILINE | re.DOTALL)
    assert len(queries) >= 2
    (tmp_path / "raylth-store").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    for sql, option, file in queries:
        assert main(["raylth-store", sql, *(["--csv", file] if option else [])]) == 0
        if option:
            assert len(pd.read_csv(file)) > 1


def test_show_tables_lists_every_table(store, capsys):
    for sql in ("SHOW TABLES", "show tables;", "SELECT table_name AS name FROM information_schema.tables"):
        assert set(frame(capsys, store, sql)["name"]) == {*DATASETS, "arms"}
    columns = frame(capsys, store, "DESCRIBE permutations")["column_name"]
    assert columns.tolist() == DATASETS["permutations"].names
    told = frame(capsys, store, "SELECT count(*) AS n FROM query_table('cur' || 'ves')")
    assert told["n"].item() == len(load_curves(store)), "a computed name is no empty table"


@pytest.mark.parametrize("name", [*TABLES])
def test_no_column_is_a_reserved_word(store, capsys, name):
    for column in TABLES[name].names:
        sql = f"SELECT {column}, max({name}.{column}) AS most FROM {name} WHERE {column} IS NULL GROUP BY {column}"
        assert list(frame(capsys, store, sql).columns) == [column, "most"]


def test_old_tables_with_a_column_named_group_are_read(store, tmp_path):
    """Together with new ones, and joined with new rows of their run."""
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    expected = load_permutations(copy)
    old = sorted((copy / "permutations").iterdir())[0]
    table = pq.read_table(old)
    names = ["group" if name == "unit_group" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names).replace_schema_metadata({"raylth_schema": "1"}), old)
    pd.testing.assert_frame_equal(load_permutations(copy), expected)
    order = {key: rank for rank, key in enumerate(dict.fromkeys(table["key"].to_pylist()))}
    compact_table(locate(copy), "permutations", old.stem, order, {})
    assert pq.read_table(old).column_names == DATASETS["permutations"].names
    pd.testing.assert_frame_equal(load_permutations(copy), expected)


def test_arms_can_be_averaged(tmp_path, capsys):
    """Of sweeps that share networks, and of sweeps that differ in what is no column."""
    store = Store(tmp_path)
    sweeps = [
        {"name": "one"},
        {"name": "two"},  # the same networks under another name
        {"name": "faster", "dense": {"epochs": 4, "lr": 0.05}},
        {"name": "matched", "match": {"epochs": None, "samples": 16}},
    ]
    for changed in sweeps:
        config = tiny_sweep(**{"sparse": {"arms": ["lth", "naive", "permuted"], "sparsities": [0.5]}, **changed})
        plan = make_plan(config)
        graph = run_plan(plan, store)
        Recorder(Run.open(config, store), plan, graph).close()
    by = "SELECT settings, arm, sparsity, rewind_epoch, match_epoch, match_samples, "
    by += "count(*) AS n, count(DISTINCT key) AS keys, "
    told = frame(capsys, tmp_path, by + "count(DISTINCT replicate) AS replicates FROM arms GROUP BY ALL")
    assert (told["n"] == told["keys"]).all()
    assert (told["n"] == told["replicates"]).all(), told[told["n"] != told["replicates"]].to_dict("records")
    results = load_results(tmp_path)
    finished = results[(results["stage"] == "sparse") & (results["status"] == "done")]
    assert told["n"].sum() == finished["key"].nunique() < len(finished)
    for file in (tmp_path / "results").glob("*.parquet"):  # as an old store may have it: data that changed in mid-run
        table = pq.read_table(file)
        numbers, fingerprints = (table[column].to_pylist() for column in ("rewind_epoch", "data_sha256"))
        mixed = ["0" * 64 if number else old for number, old in zip(numbers, fingerprints, strict=True)]
        column = table.schema.get_field_index("data_sha256")
        pq.write_table(table.set_column(column, table.schema.field(column), [mixed]), file)
    told = frame(capsys, tmp_path, "SELECT settings, arm, count(DISTINCT data_sha256) AS data FROM arms GROUP BY ALL")
    assert set(told["data"]) == {1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with one finished run, and its plan."""
    config, store = tiny_sweep(match={"epochs": None}), Store(tmp_path_factory.mktemp("finished"))
    plan = make_plan(config)
    graph = run_plan(plan, store)
    Recorder(Run.open(config, store), plan, graph).close()
    return store.root.path, config, plan


@pytest.mark.parametrize("harm", ["cut", "empty", "other bytes", "a flipped footer"])
@pytest.mark.parametrize("dataset", ["results", "curves"])
def test_a_harmed_table_is_left_out_with_its_name_and_written_anew(finished, tmp_path, capsys, harm, dataset):
    whole_store, config, plan = finished
    shutil.copytree(whole_store, tmp_path, dirs_exist_ok=True)
    store = Store(tmp_path)
    run = Run.open(config, store)
    file = tmp_path / dataset / f"{run.name}.parquet"
    whole = file.read_bytes()
    table = pq.read_table(file)
    harmed = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "other bytes": b"x" * 900,
        "a flipped footer": whole[:-6] + b"zzPAR1",
    }
    file.write_bytes(harmed[harm])
    with pytest.warns(UserWarning, match=f"{file}: not a complete Parquet table"):
        assert frame(capsys, tmp_path, f"SELECT count(*) AS n FROM {dataset}")["n"].item() == 0
    recorder = Recorder(run, plan, scan(plan, store))
    (note,) = recorder.take_notes()
    assert note.startswith(f"{file}: not a complete Parquet table")
    assert note.endswith("written anew from the stages")
    recorder.close()
    assert pq.read_table(file).equals(table)
    assert [path.read_bytes() for path in (tmp_path / "broken").iterdir()] == [harmed[harm]]
