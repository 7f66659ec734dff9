"""Every loader reads the same crops of a .beton file, in any order and from any step on; which one is used, and said."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from raylth.cli import check
from raylth.cli import data as command
from raylth.config.data import DataConfig
from raylth.core.data import DataError
from raylth.core.data.streamed import loaders
from raylth.core.data.streamed.area import resize_by_area
from raylth.core.data.streamed.beton import JPEG, RAW, Beton
from raylth.core.data.streamed.loaders import LOADERS, chosen_loader, is_installed, make_reader
from raylth.core.models import init_model
from raylth.core.training.loop import Recipe, train
from raylth.stages import load_data, make_plan
from tests.conftest import SHARED_DATA, tiny_sweep
from tests.core.data.conftest import NUM_TRAIN, NUM_VAL, load

APART = {"pil": (0.8, 4), "torchcodec": (0.8, 4), "dali": (1.6, 12)}  # of 255 from FFCV: mean, 99 % of the differences
DALI = [
    "nvidia-dali-cuda130==2.4.0", "nvidia-nvimgcodec-cu13==0.9.0.20", "astunparse==1.6.3", "gast==0.7.0", "libcst==1.9.0",
    "makefun==1.16.0", "nvtx==0.2.17", "optree==0.20.0", "six==1.17.0", "wheel==0.48.0",
]  # fmt: skip


@pytest.fixture(scope="session")
def dali(tmp_path_factory):
    """DALI beside the environment: 0.5 GB, which only these tests need, and an older `packaging` than others want."""
    if is_installed("dali"):
        return
    folder = str(tmp_path_factory.mktemp("dali"))
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
    done = subprocess.run([*install, "--target", folder, *DALI], capture_output=True, text=True, timeout=250, check=False)
    if done.returncode:
        pytest.skip(f"DALI cannot be installed here: {done.stderr.strip()[-300:]}")
    (Path(folder) / "nvidia/__init__.py").unlink()  # it would hide the folder of that name in which torch has its libraries
    sys.path.append(folder)
    is_installed.cache_clear()
    assert is_installed("dali")


@pytest.fixture(params=list(LOADERS))
def loader(request):
    if request.param == "dali":
        request.getfixturevalue("dali")
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed: {LOADERS[request.param].install}")
    return request.param


def images(beton, loader, resolution, key, order=None, batch_size=8):
    order = np.arange(len(beton)) if order is None else order
    batches = make_reader(loader, beton, resolution, 0.875, torch.device("cpu")).batches(order, batch_size, key)
    return [batch.clone() for batch in batches]


def splits(converted, loader, resolution=32):
    return load(converted, resolution).loaded_by(loader).splits("cpu")


@pytest.mark.skipif(not is_installed("ffcv"), reason="FFCV is not installed: make ffcv")
@pytest.mark.parametrize("key", [None, 99])
@pytest.mark.parametrize("resolution", [24, 64])
def test_loaders_read_the_same_images(converted, loader, resolution, key):
    """Apart by how JPEG and resizing round, of 255 on average over an image."""
    beton, order = Beton(converted / "train.beton"), np.random.default_rng(1).permutation(NUM_TRAIN)
    expected, found = (images(beton, name, resolution, key, order) for name in ("ffcv", loader))
    assert [len(batch) for batch in found] == [8] * 5 + [5], "the last batch is smaller"
    assert found[0].shape[1:] == (resolution, resolution, 3)
    apart = (torch.cat(found).float() - torch.cat(expected).float()).abs().mean((1, 2, 3))
    mean, worst = {"ffcv": (0, 0), "dali": (1.3, 3)}.get(loader, (0.7, 1.5))
    assert float(apart.mean()) <= mean
    assert float(apart.max()) <= worst


@pytest.mark.skipif(not (SHARED_DATA / "imagenet-sample").is_dir(), reason="shared/data/imagenet-sample is not here")
@pytest.mark.skipif(not is_installed("ffcv"), reason="FFCV is not installed: make ffcv")
def test_photographs_differ_by_what_the_documentation_says(loader, tmp_path_factory):
    if loader == "ffcv":
        return
    target = tmp_path_factory.getbasetemp() / "photographs"
    if not target.exists():
        source = target.with_name("sources")
        for split in ("train", "val"):
            (source / split).mkdir(parents=True)
            for folder in sorted((SHARED_DATA / "imagenet-sample").iterdir())[:64]:
                (source / split / folder.name).symlink_to(folder)
        assert command.main(["imagenet", str(source), str(target), "--workers", "2"]) == 0
    beton = Beton(target / "val.beton")
    expected, found = (torch.cat(images(beton, name, 224, 99)).float() for name in ("ffcv", loader))
    apart = (found - expected).abs()
    mean, most = APART[loader]
    assert float(apart.mean()) < mean
    assert float(np.quantile(apart.numpy(), 0.99)) <= most


@pytest.mark.parametrize("share", ["0", "1"])
def test_files_of_one_kind_of_entries_are_read(folder, tmp_path, loader, share):
    words = ["imagenet", str(folder), str(tmp_path), "--max-side", "128", "--workers", "2", "--jpeg-share", share]
    assert command.main(words) == 0
    beton = Beton(tmp_path / "val.beton")
    assert set(beton.stored["mode"].tolist()) == {RAW if share == "0" else JPEG}
    expected, found = (torch.cat(images(beton, name, 32, 5)).float() for name in ("pil", loader))
    assert float((found - expected).abs().mean()) < 4


def test_an_epoch_is_the_same_from_any_step_on_and_in_any_company(converted, loader):
    train, test = splits(converted, loader)
    options = {"augment": "resized_crop"}
    whole = list(train.epoch([3], 0, 8, **options))
    assert train.loader == loader
    assert [len(y) for _, y in whole] == [8] * 5 + [5]
    for (x, y), (again, labels) in zip(whole[2:], train.epoch([3], 0, 8, first=2, **options), strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, labels)
    larger = torch.cat([x for x, _ in train.epoch([3], 0, 16, **options)])
    assert torch.equal(torch.cat([x for x, _ in whole]), larger), "the size of batches does not change an image"
    for (x, y), (both, labels) in zip(whole, train.epoch([3, 4], 0, 8, **options), strict=True):
        assert torch.equal(x, both[0::2])
        assert torch.equal(y, labels[0::2])
    parts = [train.epoch([3], 0, 8, part=(number, 7), **options) for number in range(7)]  # two have none of the last batch
    for (x, y), *shares in zip(whole, *parts, strict=True):
        assert torch.equal(x, torch.cat([share for share, _ in shares]))
        assert torch.equal(y, torch.cat([labels for _, labels in shares]))
    other, plain = next(train.epoch([3], 1, 8, **options)), next(train.epoch([3], 0, 8))
    assert not torch.equal(whole[0][0], other[0]), "another epoch has other crops"
    assert torch.equal(whole[0][1], plain[1]), "the order does not depend on the augmentation"
    assert whole[0][0].is_contiguous(memory_format=torch.channels_last)
    x, y = (torch.cat(parts) for parts in zip(*test.batches(5), strict=True))
    assert x.shape == (NUM_VAL, 3, 32, 32)
    assert y.tolist() == sorted(y.tolist()), "evaluation goes through the file in order"
    some, fewer = test.take(7), test.take(7).take(3)
    assert torch.equal(test.take(3).probe(3), fewer.probe(3)), "fewer lie among more"
    for split in (some, fewer):
        places = [int((x == image).flatten(1).all(1).nonzero()) for image in split.probe(len(split))]
        assert places == sorted(places), "they are read in the order of the file"
        assert torch.equal(split.y, y[places])
    assert some.y.bincount(minlength=1000)[:3].sort().values.tolist() == [2, 2, 3], "classes in proportion"
    thirds = [torch.cat([labels for _, labels in test.batches(5, (number, 3))]) for number in range(3)]
    assert torch.equal(torch.cat(thirds), y)


def test_progressive_resizing_trains_at_one_size_after_the_other_and_resumes_with_the_same_bits(converted, loader):
    split, sides, states = splits(converted, loader, 96)[0], [], []
    recipe = Recipe(epochs=4, lr=0.01, batch_size=16, drop_last=False, first_resolution=32, resolution_ramp=(0.0, 0.75))

    def network():
        model = init_model(1, "resnet50", width=0.125, num_classes=10, in_shape=(3, 96, 96))
        model.register_forward_pre_hook(lambda _, args: sides.append(args[0].shape[-1]))
        return model

    def on_step(completed, step, snapshot):
        if (completed, step) == (2, 1):
            states.append(snapshot())

    whole, again = network(), network()
    losses = train(whole, split, recipe, seed=4, augment="resized_crop", on_step=on_step)
    assert sides == [32] * 3 + [64] * 3 + [64] * 3 + [96] * 3
    resumed = splits(converted, loader, 96)[0]  # as a new process opens it
    assert train(again, resumed, recipe, seed=4, augment="resized_crop", state=states[0]) == losses
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("loader", ["dali", "torchcodec", "pil"], indirect=True)
def test_a_broken_image_is_named_and_the_loader_can_be_used_on(converted, tmp_path, loader):
    whole = Beton(converted / "train.beton")
    index = next(each for each in range(NUM_TRAIN) if whole.stored["mode"][each] == JPEG)
    data = bytearray((converted / "train.beton").read_bytes())
    start, size = int(whole.stored["pointer"][index]), int(whole.bytes[index])
    data[start : start + size] = bytes(size)
    (tmp_path / "train.beton").write_bytes(data)
    reader = make_reader(loader, Beton(tmp_path / "train.beton"), 32, 0.875, torch.device("cpu"))
    with pytest.raises(DataError, match=rf"train\.beton: sample {index} cannot be decoded") as caught:
        list(reader.batches(np.arange(NUM_TRAIN), 8, 1))
    assert len(str(caught.value).splitlines()) == 1
    sound = np.delete(np.arange(NUM_TRAIN), index)
    assert sum(len(batch) for batch in reader.batches(sound, 8, 1)) == NUM_TRAIN - 1


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([24, 64, 224]))
@example(202, 208, 224)  # where only OpenCV's own arithmetic finds the same pixels
@example(204, 179, 224)
@example(186, 244, 224)
def test_resizing_is_opencvs_by_area(height, width, side):
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cv2 = pytest.importorskip("cv2", reason="OpenCV comes with FFCV: make ffcv")
    expected = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    found = resize_by_area(torch.from_numpy(pixels), side)
    assert int((found.int() - torch.from_numpy(expected).int()).abs().max()) <= 1


def having(monkeypatch, *names):
    monkeypatch.setattr(loaders, "is_installed", lambda name: name in names)


def test_auto_is_the_first_that_is_installed_and_never_dali(monkeypatch):
    for names, expected in {
        ("pil", "torchcodec", "dali", "ffcv"): "ffcv",
        ("pil", "torchcodec", "dali"): "torchcodec",
        ("pil", "dali"): "pil",
    }.items():
        having(monkeypatch, *names)
        assert chosen_loader("auto") == expected
        assert chosen_loader("dali") == "dali"


def test_a_loader_that_is_not_installed_is_one_line_on_the_driver_and_on_a_worker(converted, monkeypatch):
    expected = (
        "data.loader: dali is not installed on this machine (pip install 'raylth[dali]'; docs/guides/imagenet.md); installed "
        "here: torchcodec, pil"
    )
    having(monkeypatch, "torchcodec", "pil")
    settings = {"name": "imagenet", "root": str(converted), "num_train": NUM_TRAIN, "num_test": NUM_VAL}
    with pytest.raises(DataError) as caught:
        load_data(DataConfig(**settings, loader="dali"))
    assert str(caught.value) == expected
    assert load_data(DataConfig(**settings, loader="dali"), to_train=False), "costs can be planned elsewhere"
    having(monkeypatch, "dali", "torchcodec", "pil")
    data = load_data(DataConfig(**settings, loader="dali"))
    having(monkeypatch, "torchcodec", "pil")
    with pytest.raises(DataError) as caught:
        data.splits("cpu")
    assert str(caught.value) == expected


def test_a_check_tries_the_loader_that_is_named(converted, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = {"name": "imagenet", "root": str(converted), "num_train": NUM_TRAIN, "num_test": NUM_VAL, "resolution": 32}
    settings = {
        "data": {**data, "loader": "torchcodec"}, "model": {"name": "resnet50", "widths": [0.125]},
        "dense": {"batch_size": 8}, "sparse": {"arms": ["naive"], "batch_size": 8}, "connect": None, "match": {"samples": 16},
    }  # fmt: skip
    sweep = tiny_sweep(**settings)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(sweep.model_dump(mode="json", exclude_defaults=True)))
    if is_installed("torchcodec"):
        assert check.main(["own.yaml"]) == 0
        assert f"training: {NUM_TRAIN} samples of shape (3, 32, 32)" in capsys.readouterr().out
    having(monkeypatch, "pil")
    assert check.main(["own.yaml"]) == 2
    assert re.match(r"own\.yaml:\d+: data\.loader: torchcodec is not installed on this machine", capsys.readouterr().err)


def test_a_loader_that_cannot_be_loaded_is_one_line(converted, monkeypatch):
    def make(*_):
        raise OSError("libtorch.so: undefined symbol\nand more")

    monkeypatch.setitem(LOADERS, "torchcodec", dataclasses.replace(LOADERS["torchcodec"], make=make))
    with pytest.raises(DataError, match=r"^data\.loader: torchcodec is installed on this .* loaded: libtorch\.so: undefined"):
        next(splits(converted, "torchcodec")[0].batches(4))


def test_the_setting_knows_the_loaders_and_is_for_images_in_files():
    assert get_args(DataConfig.model_fields["loader"].annotation) == ("auto", *LOADERS)
    with pytest.raises(ValueError, match=r"loader: pil decodes images that stay in files, which those of mnist1d do not"):
        DataConfig(name="mnist1d", loader="pil")


def test_a_loader_enters_no_key():
    def keys(**data):
        settings = {"name": "imagenet", "root": "/nowhere", "num_train": 100, "num_test": 10, **data}
        return [stage.key for stage in make_plan(tiny_sweep(data=settings, model={"name": "resnet50"})).stages]

    assert keys(loader="dali") == keys(loader="pil") == keys()


def test_where_files_are_read_by_another_loader_they_are_the_same_data(converted):
    data = load(converted)
    assert data.loaded_by("pil").fingerprint() == data.fingerprint()
