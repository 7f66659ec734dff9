"""Loaders that hand over images on the GPU: the crops of the CPU, and the same bits from any step on."""

import numpy as np
import pytest
import torch

from raylth.cli import data as command
from raylth.core.data.streamed.beton import Beton
from raylth.core.data.streamed.loaders import LOADERS, is_installed, make_reader
from tests.pictures import write_pictures


@pytest.fixture(scope="module")
def beton(device, tmp_path_factory):
    if device.type != "cuda":
        pytest.skip("tests/core/data/test_loaders.py is this on a CPU")
    if not is_installed("ffcv"):
        pytest.skip("FFCV, which writes the files, is not installed: make ffcv")
    source, target = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("beton")
    write_pictures(source, 45, 12)
    assert command.main(["imagenet", str(source), str(target), "--max-side", "128", "--workers", "2"]) == 0
    return Beton(target / "train.beton")


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_gives_the_images_of_the_cpu_and_the_same_bits_in_any_company(beton, device, loader):
    if not is_installed(loader):
        pytest.skip(f"{loader} is not installed: {LOADERS[loader].install}")
    order = np.random.default_rng(0).permutation(len(beton))

    def images(where, order, batch_size=8):
        reader = make_reader(loader, beton, 64, 0.875, torch.device(where))
        return torch.cat([batch.clone() for batch in reader.batches(order, batch_size, 99)])

    found = images(device, order)
    assert found.device == device
    assert torch.equal(found, images(device, order)), "again"
    assert torch.equal(found[16:], images(device, order[16:])), "from a step on"
    assert torch.equal(found, images(device, order, 20)), "in larger batches"
    assert float((found.cpu().float() - images("cpu", order).float()).abs().mean()) < 1.5
