"""TensorBoard files are read back with what wrote the format: every network's curve, and each network once."""

import pytest
from tensorboardX.proto import event_pb2

from raylth.driver.run_record import Recorder, Run
from raylth.report import load_curves
from raylth.stages import make_plan, run_plan
from raylth.store import Store
from raylth.trackers.tensorboard import TensorBoard
from tests.conftest import tiny_sweep


def events(path):
    """The events of a file: length, checksum of it, event, checksum of that (TFRecord)."""
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        event = event_pb2.Event()
        event.ParseFromString(data[place + 12 : place + 12 + length])
        found.append(event)
        place += 12 + length + 4
    return found


def test_every_network_has_a_run_with_its_curve(tmp_path):
    config = tiny_sweep(storage=str(tmp_path / "store"), log={"tensorboard": str(tmp_path / "board"), "evaluate_every": 2})
    plan, store = make_plan(config), Store(config.storage)
    for _ in range(2):  # the second time nothing is new
        graph = run_plan(plan, store)
        run = Run.open(config, store)
        recorder = Recorder(run, plan, graph)
        recorder.close()
    trained = [stage for stage in plan.stages if stage.epochs]
    folders = {path.parent for path in (tmp_path / "board/tiny").rglob("events.out.tfevents.*")}
    assert len(folders) == len(trained)
    curves = load_curves(run.folder)
    for stage in trained:
        (folder,) = (path for path in folders if path.name.endswith(stage.key[:8]))
        assert folder.parent.name == stage.kind
        written = {}
        for path in sorted(folder.glob("events*")):
            for event in events(path):
                for value in event.summary.value:
                    if value.tag in ("train_loss", "test_accuracy"):
                        written.setdefault(value.tag, []).append((event.step, value.simple_value))
        own = curves[curves["key"] == stage.key].sort_values("epoch")
        assert written["train_loss"] == [(row.epoch, pytest.approx(row.train_loss)) for row in own.itertuples()]
        tested = own.dropna(subset="test_accuracy")
        assert written["test_accuracy"] == [(row.epoch, pytest.approx(row.test_accuracy)) for row in tested.itertuples()]


def test_a_run_that_was_cut_off_is_written_anew(trained, tmp_path):
    TensorBoard(str(tmp_path), "tiny").write(trained[0])
    (place,) = tmp_path.glob("tiny/*/*")
    (file,) = place.iterdir()
    whole = [value.tag for event in events(file) for value in event.summary.value]
    file.rename(f"{file}.half")
    place.rename(place.with_name(f".{place.name}"))  # as a driver leaves it that is killed
    TensorBoard(str(tmp_path), "tiny").write(trained[0])
    (file,) = place.iterdir()
    assert [value.tag for event in events(file) for value in event.summary.value] == whole
    assert [path.name for path in place.parent.iterdir()] == [place.name]
