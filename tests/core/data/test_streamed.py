"""Images that stay in .beton files: written, verified, their crops, their copies on machines; test_loaders.py reads them."""

import dataclasses
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow.fs import FileSystem
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from raylth.cli import data as command
from raylth.core.data import DataError, load_dataset
from raylth.core.data.decode import decode
from raylth.core.data.streamed.beton import HEADER, JPEG, RAW, Beton
from raylth.core.data.streamed.crops import RATIO, SCALE, random_resized_crop
from raylth.core.data.streamed.dataset import stage
from raylth.core.data.streamed.loaders import is_installed
from raylth.core.data.streamed.sources import FolderSource, open_source
from tests.core.data.conftest import NUM_TRAIN, NUM_VAL, load

needs_ffcv = pytest.mark.skipif(not is_installed("ffcv"), reason="FFCV is not installed: make ffcv")


@given(st.integers(0, 2**31 - 1), st.integers(0, 2_000_000), st.integers(1, 600), st.integers(1, 600))
def test_a_crop_lies_in_its_image(key, index, height, width):
    top, left, rows, columns, flip = random_resized_crop(key, index, height, width, SCALE, RATIO)
    assert 0 <= top <= top + rows <= height
    assert 0 <= left <= left + columns <= width
    assert min(rows, columns) >= 1
    assert isinstance(flip, bool)


def test_crops_are_spread_as_they_should_be():
    """As torchvision draws them: areas, aspect ratios and corners; flips are fair, and nothing is correlated."""
    drawn = [random_resized_crop(7, index, 400, 400, SCALE, RATIO) for index in range(4000)]
    top, left, rows, columns, flip = (np.array(values, dtype=float) for values in zip(*drawn, strict=True))
    area, ratio = rows * columns / 160000, columns / rows
    torch.manual_seed(0)
    image = torch.zeros(3, 400, 400)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(4000)], dtype=float)
    assert ks_2samp(area, theirs[:, 2] * theirs[:, 3] / 160000).pvalue > 0.01
    assert ks_2samp(ratio, theirs[:, 3] / theirs[:, 2]).pvalue > 0.01
    assert ks_2samp(top, theirs[:, 0]).pvalue > 0.01
    assert ks_2samp(left, theirs[:, 1]).pvalue > 0.01
    assert flip.mean() == pytest.approx(0.5, abs=0.03)
    place = (top / np.maximum(400 - rows, 1))[rows < 350]
    assert place.mean() == pytest.approx(0.5, abs=0.03)
    assert place.std() == pytest.approx(12**-0.5, abs=0.02)
    measures = np.stack([top, left, area, ratio, flip])
    other = np.stack([random_resized_crop(8, index, 400, 400, SCALE, RATIO) for index in range(4000)]).T
    correlation = np.corrcoef(np.concatenate([measures, other[[2, 4]]]))
    assert abs(correlation[4, :4]).max() < 0.06, "a flip says nothing of its crop"
    assert abs(correlation[:5, 5:]).max() < 0.06, "another epoch's draws have nothing to do with this one's"
    shifted = np.corrcoef(area[:-1], area[1:])[0, 1]
    assert abs(shifted) < 0.06, "nor a neighbour's"


@needs_ffcv
def test_what_was_written_is_what_the_source_has(folder, converted):
    source, beton = FolderSource(folder / "train"), Beton(converted / "train.beton")
    assert beton.labels.tolist() == source.labels.tolist()
    assert {JPEG, RAW} == set(beton.stored["mode"].tolist()), "half of the images are raw"
    for index in range(len(beton)):
        pixels, name = decode(source.read(index), source.name(index))[0], source.name(index)
        found = beton.image(index)
        if max(pixels.shape) <= 128:  # others are made smaller
            assert found.shape == pixels.shape, name
            apart = np.abs(found.astype(float) - pixels).mean()
            assert apart == 0 if beton.stored["mode"][index] == RAW else apart < 4, name
    record = json.loads((converted / "train.beton.json").read_text())
    assert (record["samples"], record["broken"], record["made_rgb"]) == (NUM_TRAIN, [], 3)


@needs_ffcv
@pytest.mark.parametrize("taken", [0, 1, 2, 3])
@pytest.mark.parametrize("batches", [3, 4, 12])
def test_an_epoch_may_be_left_at_any_step(converted, batches, taken):
    """A training that is stopped leaves its loader, whose thread may just then want to hand over a batch."""
    train, _ = load(converted, num_train=batches * 3).splits("cpu")
    epoch = train.epoch([3], 0, 3)
    for _ in range(taken):
        next(epoch)
    time.sleep(0.05)  # the thread fills its queue
    epoch.close()
    assert len(list(train.epoch([3], 0, 3))) == batches


@needs_ffcv
def test_an_image_is_what_pil_makes_of_its_centre(folder, converted):
    """The whole way: labels, centre crop, resizing, normalisation, channel order."""
    source, (train, _) = FolderSource(folder / "train"), load(converted).splits("cpu")
    x, y = next(train.batches(NUM_TRAIN))
    assert y.tolist() == source.labels.tolist()
    large = [index for index in range(NUM_TRAIN) if min(decode(source.read(index), "")[0].shape[:2]) >= 80]
    for index in large[:6]:
        image = Image.fromarray(decode(source.read(index), "")[0])
        side = min(image.size) * 0.875
        box = [(length - side) / 2 for length in image.size]
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BOX, (*box, box[0] + side, box[1] + side)), np.float32)
        expected = (expected - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
        assert np.abs(x[index].permute(1, 2, 0).numpy() - expected).mean() < 0.15


@needs_ffcv
def test_broken_images_are_named_and_left_out_up_to_a_limit(folder, tmp_path, capsys):
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(folder), str(source)], check=True)
    whole = next((source / "train/class1").iterdir()).read_bytes()
    (source / "train/class0/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "train/class2/empty.jpg").write_bytes(b"")
    target = tmp_path / "target"
    assert command.main(["imagenet", str(source), str(target), "--most-broken", "1"]) == 2
    assert "2 images cannot be decoded, and at most 1 may" in capsys.readouterr().err
    assert not list(target.glob("train*")), "nothing half-written is left"
    assert command.main(["imagenet", str(source), str(target)]) == 0
    output = capsys.readouterr().out
    assert f"broken, skipped: {source}/train/class0/cut.jpg" in output
    assert Beton(target / "train.beton").labels.tolist() == FolderSource(folder / "train").labels.tolist()
    images = next(load(target).splits("cpu")[0].batches(NUM_TRAIN))[0]
    assert len(images) == NUM_TRAIN, "what was taken out is not read"


@needs_ffcv
def test_a_write_that_is_interrupted_leaves_nothing_that_looks_whole_and_is_done_again(folder, tmp_path, capsys):
    source = tmp_path / "source"
    for split in ("train", "val"):
        (source / split / "class0").mkdir(parents=True)
        for number in range(600):
            (source / split / "class0" / f"{number}.jpg").hardlink_to(folder / "val/class0/003.JPEG")
    words = [sys.executable, "-m", "raylth.data", "imagenet", str(source), str(tmp_path / "target"), "--workers", "1"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "target/train.beton.partial").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "target/train.beton").exists()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.count("verified") == 2
    assert command.main(words[3:]) == 0
    assert capsys.readouterr().out.count(": exists, with ") == 2


@needs_ffcv
def test_a_writer_process_that_dies_is_reported(folder, tmp_path, monkeypatch, capsys):
    from raylth.core.data.streamed import convert

    monkeypatch.setattr(convert._Decoded, "__getitem__", lambda self, index: os._exit(9))
    assert command.main(["imagenet", str(folder), str(tmp_path), "--workers", "2"]) == 2
    assert "a writer process ended with status 9" in capsys.readouterr().err


def test_wrong_files_are_one_line(converted, tmp_path):
    whole = (converted / "val.beton").read_bytes()
    header = np.frombuffer(whole[: HEADER.itemsize], dtype=HEADER).copy()
    header["version"] = 7
    unfinished = np.frombuffer(whole[: HEADER.itemsize], dtype=HEADER).copy()
    unfinished["allocations"] = 0
    cases = {
        "no such file": None,
        "is not a .beton file of version 2": header.tobytes() + whole[HEADER.itemsize :],
        "is incomplete: write it again": unfinished.tobytes() + whole[HEADER.itemsize :],
        "is truncated": whole[:100],
        "truncated": whole[:-200],
        "version 2 .it begins with": b"\xff\xd8" + whole[2:],
    }
    path = tmp_path / "val.beton"
    for expected, content in cases.items():
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=expected) as caught:
            Beton(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_files_in_a_bucket_are_copied_to_the_machine_and_read_there(converted, bucket_servers, tmp_path, monkeypatch):
    monkeypatch.setattr("raylth.core.data.streamed.files.PIECE", 3_000_000)  # several for a file
    bucket = bucket_servers["s3"]
    system, inside = FileSystem.from_uri(bucket.url(f"{tmp_path.name}/images"))
    for name in ("train.beton", "val.beton"):
        with system.open_output_stream(f"{inside}/{name}") as file:
            file.write((converted / name).read_bytes())
    root = bucket.url(f"{tmp_path.name}/images")
    data = load_dataset("imagenet", root=root, resolution=32, num_train=NUM_TRAIN, num_test=NUM_VAL)
    assert data.fingerprint() == load(converted).fingerprint(), "where files lie does not enter a key"
    with pytest.raises(DataError, match=r"is in a bucket: set resources\.staging"):
        data.staged(None)
    found, expected = (each.splits("cpu") for each in (data.staged(str(tmp_path)), load(converted)))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.probe(5), theirs.probe(5))
    (copied,) = tmp_path.glob("train-*.beton")
    assert copied.read_bytes() == (converted / "train.beton").read_bytes()
    with pytest.raises(DataError, match="no such file"):
        load_dataset("imagenet", root=bucket.url("nowhere"))
    with pytest.raises(DataError, match=r"data\.root: foo://bucket/images/train\.beton: cannot be read: "):
        load_dataset("imagenet", root="foo://bucket/images")


def stage_and_note(path, folder, notes):
    copy = stage(path, folder)
    with open(notes, "a") as file:
        file.write(f"{copy} {copy.stat().st_ino} {copy.stat().st_size}\n")


def test_processes_of_one_machine_copy_a_file_once(converted, tmp_path):
    path, notes = str(converted / "train.beton"), tmp_path / "notes"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=stage_and_note, args=(path, str(tmp_path / "local"), str(notes))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(set(notes.read_text().splitlines())) == 1, "all read the same copy, made once"
    copy = stage(path, str(tmp_path / "local"))
    assert copy.read_bytes() == Path(path).read_bytes()
    data = dataclasses.replace(load(converted), staging=str(tmp_path / "local"))
    assert data.fingerprint() == load(converted).fingerprint(), "where it is read does not matter"
    one, other = (next(found.splits("cpu")[0].batches(8))[0] for found in (data, load(converted)))
    assert torch.equal(one, other)


def test_a_truncated_copy_is_made_again_and_a_full_disk_is_reported(converted, tmp_path, monkeypatch):
    path = str(converted / "val.beton")
    whole = stage(path, str(tmp_path))
    partial = whole.with_suffix(".partial")
    partial.write_bytes(whole.read_bytes()[:1000])
    whole.unlink()
    assert stage(path, str(tmp_path)).read_bytes() == Path(path).read_bytes()
    assert not partial.exists()
    whole.unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(DataError, match="has 10 bytes free"):
        stage(path, str(tmp_path))


def test_a_data_set_of_another_size_is_asked_for_by_number(converted):
    with pytest.raises(DataError, match=rf"data\.num_train: .* has {NUM_TRAIN} samples, and the whole set 1,281,167"):
        load(converted, num_train=None)
    with pytest.raises(DataError, match=r"data\.num_test: 13 asked for"):
        load(converted, num_test=13)


@needs_ffcv
def test_parquet_gives_the_same_files(folder, converted, tmp_path):
    for split in ("train", "val"):
        source = FolderSource(folder / split)
        rows = [{"bytes": source.read(index), "path": None} for index in range(len(source.labels))]
        for part, bounds in enumerate((slice(0, 10), slice(10, None))):
            table = pa.table({"image": rows[bounds], "label": source.labels[bounds]})
            pq.write_table(table, tmp_path / f"{split}-{part:05}-of-00002.parquet", row_group_size=4)
    assert command.main(["imagenet", str(tmp_path), str(tmp_path / "out"), "--max-side", "128", "--jpeg-share", "0"]) == 0
    assert command.main(["imagenet", str(folder), str(tmp_path / "raw"), "--max-side", "128", "--jpeg-share", "0"]) == 0
    one, other = Beton(tmp_path / "out/train.beton"), Beton(tmp_path / "raw/train.beton")
    assert one.labels.tolist() == other.labels.tolist()
    assert all(np.array_equal(one.image(index), other.image(index)) for index in range(len(one)))


def test_what_is_no_source_is_one_line(tmp_path, folder):
    with pytest.raises(DataError, match="no such folder"):
        open_source(str(tmp_path / "none"), "train")
    with pytest.raises(DataError, match=r"expected train/ with a folder per class, or train\*\.parquet files"):
        open_source(str(tmp_path), "train")
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="no images; expected a folder per class"):
        open_source(str(tmp_path), "val")


@needs_ffcv
def test_splits_with_different_classes_are_refused(folder, tmp_path, capsys):
    subprocess.run(["cp", "-r", str(folder), str(tmp_path / "source")], check=True)
    subprocess.run(["rm", "-r", str(tmp_path / "source/val/class1")], check=True)
    assert command.main(["imagenet", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    assert "train and val have different classes, 'class1' is in one only" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"", b"no image", io.BytesIO().getvalue()])
def test_what_cannot_be_decoded_is_broken(data):
    from raylth.core.data.decode import BrokenImage

    with pytest.raises(BrokenImage, match="here"):
        decode(data, "here")
