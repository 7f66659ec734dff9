"""What arms are called: each label is of one arm, whatever their modules call them."""

import pandas as pd
import pytest

from raylth.report import accuracy_table, accuracy_vs_sparsity, write_report
from raylth.report.labels import arm_labels, short_names
from raylth.report.sections import figures_of, tables_of
from raylth.report.tables import wide_accuracy
from raylth.serve.data import curves_data, read_frames, run_data
from raylth.store import locate
from raylth.store.tables import write_table
from tests.serve import stores
from tests.serve.stores import STUDY

CLASHING = {"lth": "one:arm", "permuted": "other:arm"}


def arm_rows(names=CLASHING):
    rows = stores.study_rows(STUDY)
    return [{**row, "arm": names.get(row["arm"], row["arm"])} if "arm" in row else row for row in rows]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([], []),
        (["lth", "mine:arm"], ["lth", "arm"]),
        (["one:arm", "other:arm", "naive"], ["one:arm", "other:arm", "naive"]),
        (["lth", "mine:lth"], ["lth", "mine:lth"]),
        (["mine:dense", "mine:width"], ["mine:dense", "mine:width"]),
        (["mine:arm", "mine:arm"], ["arm"]),
    ],
)
def test_a_short_name_stands_for_one_thing(names, labels):
    assert list(short_names(names).values()) == labels


def test_finders_of_one_short_name_keep_their_modules():
    arms = pd.DataFrame({"arm": ["lth", "lth"], "mask_finder": ["one:find", "other:find"]})
    assert arm_labels(arms).tolist() == ["lth one:find", "lth other:find"]
    rows = [
        {**row, "mask_finder": finder, "key": row["key"] + finder}
        for row in stores.study_rows(STUDY) if "arm" in row for finder in ("one:find", "other:find")
    ]  # fmt: skip
    titles = [axis.get_title() for axis in accuracy_vs_sparsity(pd.DataFrame(rows).assign(member=None), "t").axes]
    assert any(title.startswith("one:find, ") for title in titles)
    assert any(title.startswith("other:find, ") for title in titles)


def test_two_arms_of_one_short_name_are_shown_apart(tmp_path):
    store = locate(tmp_path)
    stores.write_study(store, rows=arm_rows())
    run = store / "runs" / STUDY
    frames, _ = read_frames(run)
    labels = ["naive", "one:arm", "other:arm"]
    assert sorted(set(accuracy_table(frames.results)["label"])) == labels
    wide = wide_accuracy(frames.results)
    assert wide.columns.is_unique
    assert set(labels) < set(wide.columns)
    assert wide["one:arm"].tolist() != wide["other:arm"].tolist()
    found = run_data(run)
    assert found["notes"] == []
    assert sorted(arm["label"] for arm in found["arms"]) == labels
    (accuracy,) = [table for table in found["tables"] if table["name"] == "accuracy"]
    assert {f"{label} (%)" for label in labels} < set(accuracy["headings"])
    assert set(next(iter(curves_data(run).values()))["label"]) == {"dense", *labels}
    page = write_report(run, run / "report").read().decode()
    assert "one:arm" in page
    assert "other:arm" in page


def test_analyses_of_one_short_name_keep_their_modules(tmp_path):
    store = locate(tmp_path)
    stores.write_study(store)
    measured = [
        {"run": STUDY, "sweep": "study", "key": name, "analysis": name, "row": 0, "quantity": "q", "value": 1.0}
        for name in ("one:analysis", "other:analysis")
    ]
    write_table(store, "measurements", STUDY, measured, stores.manifest_of(STUDY))
    frames, _ = read_frames(store / "runs" / STUDY)
    for entries in (figures_of(frames), tables_of(frames)):
        assert [entry.title for entry in entries][-2:] == ["one:analysis", "other:analysis"]
