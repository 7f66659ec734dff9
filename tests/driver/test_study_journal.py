"""A search's journal after a process that died while it wrote: Optuna reads it, nothing waits, and nothing is lost."""

import json
import subprocess
import sys

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from raylth.driver.study_journal import JOURNAL, opened_journal
from raylth.store import locate

DISTRIBUTIONS = {"lr": optuna.distributions.FloatDistribution(0.001, 1.0)}


def study(file):
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    return optuna.create_study(storage=storage, study_name="s", direction="maximize", load_if_exists=True)


@pytest.fixture
def journal(tmp_path):
    """A folder whose journal holds three trials that ended."""
    with opened_journal(locate(tmp_path), pytest.fail) as (file, _):
        record = study(file)
        for value in (1.0, 2.0, 3.0):
            record.tell(record.ask(DISTRIBUTIONS), value)
    return tmp_path


def reopened(folder):
    """Open the journal again, use it, and return the ended trials' values and what was noted."""
    notes: list[str] = []
    with opened_journal(locate(folder), notes.append) as (file, _):
        record = study(file)
        values = [trial.value for trial in record.get_trials(states=(optuna.trial.TrialState.COMPLETE,))]
        record.tell(record.ask(DISTRIBUTIONS), 9.0)
        assert study(file).best_value == 9.0
        assert all(json.loads(line) for line in file.read_text().splitlines())
    return values, notes


def test_a_whole_journal_is_left_as_it_is(journal):
    before = (journal / JOURNAL).read_bytes()
    assert reopened(journal) == ([1.0, 2.0, 3.0], [])
    assert (journal / JOURNAL).read_bytes().startswith(before)


@pytest.mark.parametrize("lost", [1, 2, 3, 10, 40])
def test_an_unfinished_last_record_is_dropped(journal, lost):
    content = (journal / JOURNAL).read_bytes()
    (journal / JOURNAL).write_bytes(content[:-lost])
    values, notes = reopened(journal)
    assert values == [1.0, 2.0], "the third trial's end was the last record"
    assert notes == [f"{journal / JOURNAL}: its incomplete last record is dropped"]


def test_zeros_that_a_power_failure_leaves_are_dropped(journal):
    content = (journal / JOURNAL).read_bytes()
    (journal / JOURNAL).write_bytes(content + bytes(300))
    assert reopened(journal)[0] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("harm", [b"\xff\xfe\n", b"{}\n", b"[]\n", b"\n", b'{"op_code": "4"}\n', b"null\n"])
def test_a_harmed_record_ends_what_is_read_and_the_whole_is_kept(journal, harm):
    lines = (journal / JOURNAL).read_bytes().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines) if json.loads(line)["op_code"] == 6]
    lines[ends[1]] = harm
    (journal / JOURNAL).write_bytes(b"".join(lines))
    values, notes = reopened(journal)
    assert values == [1.0], "what comes after may hang on what was lost"
    (aside,) = journal.glob(f"{JOURNAL}.harmed-*")
    assert aside.read_bytes() == b"".join(lines)
    (note,) = notes
    assert f"line {ends[1] + 1} of {len(lines)} is no record" in note
    assert aside.name in note


def test_a_lock_that_a_killed_process_held_is_not_waited_for(journal, monkeypatch):
    """Of another process, with a relative path: Optuna by itself waits for such a lock for ever."""
    monkeypatch.chdir(journal.parent)
    hold = (
        "import os, sys; from optuna.storages.journal import JournalFileSymlinkLock as Lock\n"
        "Lock(sys.argv[1]).acquire(); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", hold, f"{journal.name}/{JOURNAL}"], check=False)
    assert done.returncode == 9
    lock = journal / f"{JOURNAL}.lock"
    assert lock.is_symlink()
    notes: list[str] = []
    with opened_journal(locate(journal.name), notes.append) as (file, _):
        assert file.is_absolute()
        assert not lock.is_symlink()
        study(file).ask()
    assert not notes
