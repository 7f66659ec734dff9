"""Images and labels as they lie in folders and Parquet files: which files make a split, what a label is, what is left out."""

import io
import re

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raylth.cli import data as command
from raylth.core.data import DataError, MissingData, check_dataset, cifar10, load_dataset
from raylth.core.data.decode import BrokenImage, decode
from raylth.core.data.parquet import TEST, TRAIN, VALIDATION, split_files
from raylth.core.data.streamed.beton import Beton
from raylth.core.data.streamed.loaders import is_installed
from raylth.core.data.streamed.sources import FolderSource, open_source
from tests.pictures import picture

needs_ffcv = pytest.mark.skipif(not is_installed("ffcv"), reason="FFCV is not installed: make ffcv")
SPLITS = [[TRAIN], [VALIDATION, TEST]]


def encoded(image, form="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def write(file, labels, images=None, column="image"):
    file.parent.mkdir(parents=True, exist_ok=True)
    images = images or [encoded(picture(number, (32, 32))) for number in range(len(labels))]
    rows = [image if image is None else {"bytes": image, "path": "x.png"} for image in images]
    pq.write_table(pa.table({column: rows, "label": labels}), file)


# which files


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train-0.parquet", "validation-0.parquet", "test-0.parquet"], [["train-0.parquet"], ["validation-0.parquet"]]),
        (["train.parquet", "test.parquet"], [["train.parquet"], ["test.parquet"]]),
        (["data/train-1.parquet", "data/train-0.parquet", "data/val_0.parquet"],
         [["data/train-0.parquet", "data/train-1.parquet"], ["data/val_0.parquet"]]),
        (["train/train-0.parquet", "test/test-0.parquet"], [["train/train-0.parquet"], ["test/test-0.parquet"]]),
        (["train-0.parquet", "._train-0.parquet", ".cache/train-0.parquet", "_temporary/train-0.parquet", "train-0.json"],
         [["train-0.parquet"], []]),
        (["train-00001-of-00002-ab.parquet", "train-00000-of-00002-cd.parquet"],
         [["train-00000-of-00002-cd.parquet", "train-00001-of-00002-ab.parquet"], []]),
        (["trainer.parquet", "values-0.parquet", "tests.parquet"], [[], []]),
        (["Train-0.parquet", "VAL.parquet"], [["Train-0.parquet"], ["VAL.parquet"]]),
    ],
)  # fmt: skip
def test_the_files_of_a_split(names, found):
    assert split_files(names, SPLITS, "here") == found


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["a/train-0.parquet", "b/train-0.parquet"], "a/train-0.parquet and b/train-0.parquet belong to two data sets"),
        (["a/train-0.parquet", "b/test-0.parquet"], "belong to two data sets"),
        (["train-0.parquet", "more/train-1.parquet"], "belong to two data sets"),
        (
            ["val-0.parquet", "validation-0.parquet"],
            "validation-0.parquet and val-0.parquet are of two splits, or the same one",
        ),
        (["train.parquet", "train-00000-of-00001.parquet"], "the same split twice"),
        (["train-00000-of-00001-ab.parquet", "train-00000-of-00001-cd.parquet"], "the same split twice"),
        (["train-00000-of-00002.parquet", "train-00000-of-00001.parquet"], "the same split twice"),
        (
            ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
            "of the 3 files such as .*, number 00001 is missing",
        ),
    ],
)
def test_files_that_are_not_one_whole_split_are_refused(names, line):
    with pytest.raises(DataError, match=f"^here: .*{line}"):
        split_files(names, SPLITS, "here")


def test_a_test_split_is_not_joined_with_a_validation_split(tmp_path):
    """As the hub stores many sets: the labels of the test split are hidden, which is -1."""
    write(tmp_path / "data/train-00000-of-00001.parquet", [0, 1, 2])
    write(tmp_path / "data/validation-00000-of-00001.parquet", [2, 1])
    write(tmp_path / "data/test-00000-of-00001.parquet", [-1, -1])
    assert open_source(str(tmp_path), "val").labels.tolist() == [2, 1]
    (tmp_path / "data/validation-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"test-00000-of-00001.parquet: row 0: the label is -1; whole numbers from 0"):
        open_source(str(tmp_path), "val")


@pytest.mark.parametrize("layout", [("plain", "other"), ("", "other"), ("plain/train", "other/train")])
def test_two_sets_below_one_folder_are_never_joined(tmp_path, layout):
    for folder in layout:
        write(tmp_path / folder / "train-0.parquet", [0, 1])
        write(tmp_path / folder.replace("train", "test") / "test-0.parquet", [1])
    for load in (
        lambda: open_source(str(tmp_path), "train"),
        lambda: cifar10(root=str(tmp_path), layout="parquet", download=False),
        lambda: check_dataset("cifar10", root=str(tmp_path), layout="parquet"),
    ):
        with pytest.raises(DataError, match="belong to two data sets: name the folder of one of them"):
            load()


def test_folders_and_parquet_of_two_sets_are_never_mixed(folder, capsys):
    write(folder / "train-0.parquet", [0, 1, 2])
    with pytest.raises(DataError, match=r"train-0.parquet and the folder train/ belong to two data sets"):
        open_source(str(folder), "train")
    (folder / "train").rename(folder / "images")
    assert command.main(["imagenet", str(folder), str(folder / "out")]) == 2
    assert "one split is in folders, the other in Parquet" in capsys.readouterr().err
    (folder / "images").rename(folder / "validation")
    with pytest.raises(DataError, match=r"val/ and validation/ are the same split twice"):
        open_source(str(folder), "val")


def test_short_data_are_refused(tmp_path):
    write(tmp_path / "train-0.parquet", [0, 1, 2])
    write(tmp_path / "test-0.parquet", [3])
    options = {"root": str(tmp_path), "layout": "parquet"}
    with pytest.raises(
        DataError, match=r"^data.num_train: cifar10: its train split has 3 samples .*, and the whole set 50,000"
    ):
        load_dataset("cifar10", **options)
    with pytest.raises(DataError, match=r"^data.num_test: .* set it to 1"):
        load_dataset("cifar10", num_train=3, **options)
    assert len(load_dataset("cifar10", num_train=3, num_test=1, **options).train_y) == 3
    with pytest.raises(MissingData, match="found none"):
        load_dataset("cifar10", root=str(tmp_path / "nowhere"), layout="parquet")


# labels


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ([0, None, 2], "row 1: the label is null"),
        (pa.array([0.0, 1.0, 1.7]), "row 2: the label is 1.7"),
        (pa.array([0.0, float("nan"), 1.0]), "row 1: the label is nan"),
        ([0, 1, -1], "row 2: the label is -1"),
        (["cat", "dog", "cat"], "its labels are of type string"),
        ([True, False, True], "its labels are of type bool"),
        ([[0], [1], [2]], "its labels are of type list"),
        (pa.array([None, None, None]), "the label is null"),
    ],
)
def test_what_is_no_label_is_named_with_its_file_and_row(tmp_path, labels, line):
    write(tmp_path / "train-0.parquet", labels)
    write(tmp_path / "test-0.parquet", [0])
    for load in (
        lambda: cifar10(root=str(tmp_path), layout="parquet", download=False),
        lambda: open_source(str(tmp_path), "train"),
    ):
        with pytest.raises(DataError, match=rf"train-0\.parquet: .*{re.escape(line)}"):
            load()


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64(), pa.float32()])
def test_whole_labels_of_any_type_are_labels(tmp_path, kind):
    write(tmp_path / "train-0.parquet", pa.array([3, 0, 2], kind))
    labels = open_source(str(tmp_path), "train").labels
    assert (labels.dtype, labels.tolist()) == (np.int64, [3, 0, 2])


# images

RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_images_of_16_bits_are_scaled(form):
    pixels, is_changed = decode(encoded(Image.fromarray(RAMP), form), "ramp")
    assert is_changed
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels[:, :, 0].astype(float) - RAMP / 257).max() <= 0.5
    assert (pixels == pixels[:, :, :1]).all()


def test_images_without_a_known_scale_are_broken():
    for image in (Image.fromarray(RAMP.astype(np.int32) * 10), Image.fromarray(RAMP.astype(np.float32))):
        with pytest.raises(BrokenImage, match=r"ramp: pixels of mode [IF], whose scale is not known"):
            decode(encoded(image, "TIFF"), "ramp")


OLD_PILLOW = int(PIL.__version__.split(".")[0]) < 13
YCBCR = pytest.param("YCbCr", marks=pytest.mark.skipif(OLD_PILLOW, reason="Pillow reads such TIFF files since version 13"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", YCBCR])
def test_images_of_8_bits_are_what_they_were(mode):
    image = picture(3, (20, 10)).convert(mode)
    form = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    pixels, is_changed = decode(encoded(image, form), "picture")
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(encoded(image, form))).convert("RGB")))
    assert is_changed == (mode != "RGB")


def test_images_of_16_bits_in_cifars_files_are_scaled(tmp_path):
    ramp = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)
    write(tmp_path / "train-0.parquet", [0], [encoded(Image.fromarray(ramp))], column="img")
    write(tmp_path / "test-0.parquet", [0], column="img")
    found = cifar10(root=str(tmp_path), layout="parquet", download=False).train_x[0]
    assert len(np.unique(found)) == 256
    assert np.abs(found[0] - ramp / 257).max() <= 0.5


@pytest.mark.parametrize("image", [None, b"", b"no image"])
def test_a_row_without_an_image_is_broken(tmp_path, image):
    whole = encoded(picture(1, (32, 32)))
    write(tmp_path / "train-0.parquet", [0, 1, 2], [whole, image, whole], column="img")
    write(tmp_path / "test-0.parquet", [0], column="img")
    with pytest.raises(DataError, match=r"train-0.parquet: row 1: expected an image"):
        cifar10(root=str(tmp_path), layout="parquet", download=False)
    source = open_source(str(tmp_path), "train")
    with pytest.raises(BrokenImage, match="row 1"):
        decode(source.read(1), source.name(1))


# folders


@pytest.fixture
def folder(tmp_path):
    """Three classes, with what systems and editors leave behind."""
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(("cat", "dog", "eel")):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for each in range(count):
                picture(10 * number + each, (40, 40)).save(place / f"{each}.png")
        (tmp_path / split / ".ipynb_checkpoints").mkdir()
        picture(0, (40, 40)).save(tmp_path / split / ".ipynb_checkpoints/0.png")
        (tmp_path / split / "cat/.ipynb_checkpoints").mkdir()
        picture(0, (40, 40)).save(tmp_path / split / "cat/.ipynb_checkpoints/0-checkpoint.png")
        (tmp_path / split / "dog/._0.png").write_bytes(b"AppleDouble")
        (tmp_path / split / ".DS_Store").write_bytes(b"Finder")
    return tmp_path


def test_names_that_begin_with_a_dot_are_no_data(folder):
    source = FolderSource(folder / "train")
    assert source.classes == ["cat", "dog", "eel"]
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.files == [f"{name}/{each}.png" for name in source.classes for each in range(4)]
    assert source.notes == []


def test_what_is_left_out_is_named(folder):
    for name in ("a.gif", "b.tiff", "c.TIFF", "notes.txt"):
        (folder / "train/eel" / name).write_bytes(b"x")
    (folder / "val/fox").mkdir()
    assert FolderSource(folder / "train").notes[0].startswith(f"{folder}/train: left out, not among .bmp, .jpeg")
    assert all(f"1 {kind}" in FolderSource(folder / "train").notes[0] for kind in (".gif", ".tiff", ".TIFF", ".txt"))
    assert FolderSource(folder / "val").notes == [f"{folder}/val: the class fox has no images"]


@needs_ffcv
def test_a_class_without_training_images_is_refused(folder, tmp_path, capsys):
    """A leftover folder, such as a disk's lost+found, would be a class of its own, and move the labels of all that follow."""
    for split in ("train", "val"):
        (folder / split / "__MACOSX").mkdir()
        (folder / split / "__MACOSX/._0.png").write_bytes(b"AppleDouble")
    assert command.main(["imagenet", str(folder), str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "the class __MACOSX has no training images: remove its folder or add images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs_ffcv
def test_a_broken_image_and_a_class_that_loses_all_of_its_images_are_named(folder, tmp_path, capsys):
    for each in range(4):
        (folder / f"train/eel/{each}.png").write_bytes(b"cut")
    assert command.main(["imagenet", str(folder), str(tmp_path / "out"), "--workers", "1"]) == 0
    told = capsys.readouterr().out
    assert told.count("broken, skipped: ") == 4
    assert "no image is left of class eel" in told
    assert Beton(tmp_path / "out/train.beton").labels.tolist() == [0] * 4 + [1] * 4


@needs_ffcv
def test_broken_images_are_taken_out_whatever_their_labels(tmp_path, capsys):
    images = [encoded(picture(number, (40, 40))) for number in range(6)]
    write(tmp_path / "src/train-0.parquet", [5, 0, 3, 1, 4, 2], [*images[:2], None, b"cut", *images[4:]])
    write(tmp_path / "src/val-0.parquet", [1, 0], images[:2])
    assert command.main(["imagenet", str(tmp_path / "src"), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert Beton(tmp_path / "out/train.beton").labels.tolist() == [5, 0, 4, 2]
    assert capsys.readouterr().out.count("broken, skipped: ") == 2


@needs_ffcv
def test_a_file_of_the_same_tables_and_other_images_is_another_file(tmp_path):
    """Raw images of one size: neither sizes nor places tell them apart."""
    source = tmp_path / "src"
    for split in ("train", "val"):
        (source / split / "cat").mkdir(parents=True)
        for each in range(3):
            picture(each, (40, 40)).save(source / split / f"cat/{each}.png")
    words = ["imagenet", str(source), str(tmp_path / "out"), "--jpeg-share", "0", "--workers", "1"]
    assert command.main(words) == 0
    before = load_dataset("imagenet", root=str(tmp_path / "out"), num_train=3, num_test=3)
    path = tmp_path / "out/train.beton"
    content, beton = bytearray(path.read_bytes()), Beton(path)
    place = int(beton.stored["pointer"][1]) + 100
    content[place] ^= 255
    path.write_bytes(content)
    after = load_dataset("imagenet", root=str(tmp_path / "out"), num_train=3, num_test=3)
    assert after.fingerprint() != before.fingerprint()
    with pytest.raises(DataError, match=r"train\.beton is not the same file on this machine as where the sweep was started"):
        before.splits("cpu")
