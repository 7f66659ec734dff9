import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from mnist1d.data import get_dataset_args, make_dataset
from PIL import Image

from raylth.core.data import DATASETS, ArrayDataset, DataError, check_dataset, cifar10, load_dataset, mnist1d
from raylth.core.data.subset import stratified_order
from tests.conftest import SHARED_DATA


def jpeg(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def write_parquet(folder, split, images, labels, column="label"):
    table = pa.table({"img": [{"bytes": image, "path": None} for image in images], column: labels})
    pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("name", ["mnist1d", "digits"])
def test_embedded_sets_are_what_their_info_says_and_always_the_same(name):
    info, data = DATASETS[name], load_dataset(name)
    assert data.train_x.shape == (info.num_train, *info.in_shape)
    assert data.test_x.shape == (info.num_test, *info.in_shape)
    assert set(data.train_y) == set(range(info.num_classes))
    assert data.fingerprint() == load_dataset(name).fingerprint()
    assert abs(float(data.train_x.mean())) < 0.05


def test_mnist1d_is_what_its_generator_makes():
    made = make_dataset(get_dataset_args())
    data = mnist1d()
    for ours, theirs in (("train_x", "x"), ("test_x", "x_test")):
        np.testing.assert_allclose(getattr(data, ours), made[theirs], atol=1e-5)
    assert data.train_y.tolist() == made["y"].tolist()
    assert data.test_y.tolist() == made["y_test"].tolist()


def test_parquet_images_are_decoded_in_order_and_normalised(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    grey = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    write_parquet(tmp_path, "train", [*map(jpeg, pixels), jpeg(grey)], list(range(7)))
    write_parquet(tmp_path, "test", [jpeg(pixels[0])], [9])
    data = cifar10(root=str(tmp_path), layout="parquet", download=False)
    np.testing.assert_array_equal(data.train_x[:6], pixels.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.train_x[6], np.stack([grey] * 3))
    assert data.train_y.tolist() == list(range(7))
    train, _ = data.splits("cpu")
    x, y = next(train.batches(7))
    red = (pixels[2, 0, 0, 0] - data.mean[0]) / data.std[0]
    assert float(x[2, 0, 0, 0]) == pytest.approx(red, rel=1e-5)
    assert y.tolist() == list(range(7))


def test_torchvision_files(tmp_path, monkeypatch):
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint64).astype(np.uint8).reshape(2, 3072)
    for name, labels in (("data_batch_1", [3, 4]), ("test_batch", [5, 6])):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    data = cifar10(root=str(tmp_path), layout="torchvision", download=False)
    np.testing.assert_array_equal(data.train_x, pixels.reshape(2, 3, 32, 32))
    assert data.test_y.tolist() == [5, 6]


def test_each_kind_of_broken_data_is_named_with_its_path(tmp_path):
    good = jpeg(np.zeros((32, 32, 3), dtype=np.uint8))

    def load(**options):
        return load_dataset("cifar10", **{"root": str(tmp_path), "layout": "parquet", **options})

    with pytest.raises(DataError, match=r"^data.root: .*cifar-10-batches-py: expected cifar10's files.*data.download=true"):
        load(layout="torchvision")
    with pytest.raises(DataError, match=r"expected cifar10's Parquet files named train-\*\.parquet, found none"):
        load()
    write_parquet(tmp_path, "test", [good], [1])
    (tmp_path / "train-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"train-0\.parquet: expected a Parquet file"):
        load()
    (tmp_path / "train-0.parquet").unlink()
    for images, labels, message in (
        ([b"not an image"], [0], "row 0: expected an image"),
        ([good[:-20]], [0], "row 0: expected an image"),
        ([good, jpeg(np.zeros((8, 8, 3), dtype=np.uint8))], [0, 1], "row 1: expected a 32x32 image, found 8x8"),
        ([good], [12], "labels of cifar10 lie in 0..9, found 12..12"),
    ):
        write_parquet(tmp_path, "train", images, labels)
        with pytest.raises(DataError, match=message):
            load()
    write_parquet(tmp_path, "train", [good], [1], column="klass")
    with pytest.raises(DataError, match="expected a column label, found img, klass"):
        load()
    write_parquet(tmp_path, "train", [good], [1])
    with pytest.raises(DataError, match=r"data.num_train: 5 asked for, but the train split of cifar10 has 1"):
        load(num_train=5)


def test_missing_files_are_noticed_without_reading_an_image(tmp_path):
    check_dataset("digits")
    torchvision = {"root": str(tmp_path), "layout": "torchvision"}
    check_dataset("cifar100", **torchvision, download=True)
    with pytest.raises(DataError, match=r"^data.root: .*cifar-100-python: .*\(train is missing\); data.download=true"):
        check_dataset("cifar100", **torchvision)
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test"):
        (tmp_path / "cifar-100-python" / name).write_bytes(b"never read")
    with pytest.raises(DataError, match=r"\(meta is missing\)"):
        check_dataset("cifar100", **torchvision)
    (tmp_path / "cifar-100-python" / "meta").write_bytes(b"never read")
    check_dataset("cifar100", **torchvision)
    parquet = {"root": str(tmp_path), "layout": "parquet"}
    write_parquet(tmp_path, "train", [b"never decoded"], [1])
    with pytest.raises(DataError, match=r"^data.root: .*Parquet files named test-\*\.parquet, found none"):
        check_dataset("cifar10", **parquet)
    write_parquet(tmp_path, "test", [b"never decoded"], [1], column="klass")
    with pytest.raises(DataError, match="expected a column label, found img, klass"):
        check_dataset("cifar10", **parquet)
    write_parquet(tmp_path, "test", [b"never decoded"], [1])
    check_dataset("cifar10", **parquet)


@pytest.mark.skipif(not (SHARED_DATA / "cifar10-jpeg").exists(), reason="real CIFAR-10 is not beside this checkout")
def test_real_cifar10():
    data = load_dataset("cifar10", root=str(SHARED_DATA / "cifar10-jpeg"), layout="parquet")
    assert data.train_x.shape == (50_000, 3, 32, 32)
    assert np.bincount(data.train_y).tolist() == [5000] * 10
    channels = data.train_x.transpose(1, 0, 2, 3).reshape(3, -1)
    assert channels.mean(1) == pytest.approx(data.mean, abs=0.5)
    assert channels.std(1) == pytest.approx(data.std, abs=0.5)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 400), st.booleans())
def test_any_first_part_has_the_classes_in_proportion(sizes, count, sort):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    if not sort:
        labels = np.random.default_rng(0).permutation(labels)
    order = stratified_order(labels, "train")
    assert sorted(order) == list(range(len(labels)))
    count = min(count, len(labels))
    found = np.bincount(labels[order[:count]], minlength=len(sizes))
    share = count * np.asarray(sizes) / len(labels)
    if len(set(sizes)) == 1:
        assert ((found == np.floor(share)) | (found == np.ceil(share))).all()
    else:
        assert (np.abs(found - share) <= 1 + np.asarray(sizes) / len(labels) * len(sizes)).all()


def test_a_part_of_sorted_data_is_a_fair_sample_in_every_stage():
    """Data in the order of their classes, as a folder for each class gives them: the same random samples of every class."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1000, 4)).astype(np.float32), np.repeat(np.arange(10), 100)
    whole = ArrayDataset(x, y, x, y)
    some, fewer = whole.subset(200, 50), whole.subset(20, 50)
    for part, each in ((some.train_y, 20), (fewer.train_y, 2), (some.test_y, 5)):
        assert np.bincount(part, minlength=10).tolist() == [each] * 10
    np.testing.assert_array_equal(fewer.train_x, some.train_x[:20])
    train, _ = whole.subset(None, None).splits("cpu")
    assert torch.equal(train.take(200).x, torch.tensor(some.train_x))
    held = some.holding_out(50)
    assert np.bincount(held.test_y, minlength=10).tolist() == [5] * 10
    assert np.bincount(held.train_y, minlength=10).tolist() == [15] * 10
    assert not {row.tobytes() for row in held.train_x} & {row.tobytes() for row in held.test_x}
    firsts = {float(value) for value in x[::100, 0]}
    assert len(firsts & {float(value) for value in some.train_x[:100, 0]}) < 5, "nor the first samples of each class"
    assert not np.array_equal(whole.subset(200, 200).train_x, whole.subset(200, 200).test_x), "each split has its own draw"


def test_imagenets_constants_take_the_place_of_a_data_sets_own(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for split in ("train", "test"):
        write_parquet(tmp_path, split, [*map(jpeg, pixels)], [0, 1, 2, 3])
    options = {"root": str(tmp_path), "layout": "parquet", "num_train": 4, "num_test": 4}
    own, other = (load_dataset("cifar10", **options, normalisation=name).splits("cpu")[0] for name in ("own", "imagenet"))
    assert torch.equal(own.x, other.x)
    expected = torchvision.transforms.functional.normalize(own.x / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(other.probe(4), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(own.probe(4), expected, atol=1e-2)
