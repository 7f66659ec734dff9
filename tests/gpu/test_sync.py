"""Where the host waits for the GPU: once an epoch, when it reads the losses."""

import warnings
from dataclasses import replace

import pytest
import torch

from raylth.core.data.prefetch import to_device
from raylth.core.training.engines.program import make_program
from raylth.core.training.loop import train_together
from raylth.core.training.recipe import Recipe
from tests.gpu.trainings import NETWORKS, augmentation_of, masks_of, networks_of, random_split

RECIPE = Recipe(3, lr=0.05, batch_size=32, label_smoothing=0.1, drop_last=False)
COUNT = 5 * 32 + 6
LAST = 5  # steps before the ragged one


def debug(device, mode):
    """Have torch raise or warn where the host waits."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode(mode)


@pytest.fixture(autouse=True)
def _waiting_is_allowed_again(device):
    yield
    debug(device, "default")


def train(name, engine, device, recipe=RECIPE, **hooks):
    networks = networks_of(name, 2, device)
    split = random_split(NETWORKS[name][0], device, COUNT)
    return train_together(
        make_program(networks, engine), split, recipe, seeds=[1, 2], augment=augmentation_of(name), masks=masks_of(networks),
        **hooks,
    )  # fmt: skip


def test_a_wait_is_seen(card):
    """The checks below can fail: values that are read and copies from plain memory are errors in this mode."""
    tensor = torch.ones(3, device=card)
    host = torch.ones(3)
    for wait in (tensor.sum().item, tensor.tolist, lambda: host.to(card), tensor.cpu):
        try:
            debug(card, "error")
            with pytest.raises(RuntimeError, match="synchroniz"):
                wait()
        finally:
            debug(card, "default")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("name", ["mlp", "resnet20"])
def test_nothing_waits_inside_an_epoch(device, name, engine, precision):
    """With masks and augmentation, from the second epoch's second step to its last but one; the first epoch captures.

    It fails where a step reads a value from the GPU or copies from memory that is not pinned. A thread draws the third epoch
    meanwhile.
    """
    seen = []

    def on_step(completed, step, snapshots):
        if completed == 1 and step == 1:
            debug(device, "error")
        if completed == 1 and step >= 1:
            seen.append(step)
        if completed == 1 and step == LAST:
            debug(device, "default")

    try:
        train(name, engine, device, replace(RECIPE, precision=precision), on_step=on_step)
    finally:
        debug(device, "default")
    assert seen == list(range(1, LAST + 1))


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_the_host_waits_for_the_losses_of_an_epoch_and_for_no_step(card, engine):
    """In a whole epoch, from the end of the one before, the waits are two at most, however many steps it has.

    One is the read of the losses. The other is the sums of losses that an epoch begins with, if they are copied there from
    plain memory: the GPU has nothing to do then. It fails where a step waits, the first and the ragged one included.
    """
    places = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def on_epoch(completed, losses):
            if completed == 1:
                caught.clear()
                debug(card, "warn")
            elif completed == 2:
                debug(card, "default")
                places.extend(f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message))

        try:
            train("resnet20", engine, card, on_epoch=on_epoch)
        finally:
            debug(card, "default")
    print(places)
    assert 1 <= len(places) <= 2, places


@pytest.mark.parametrize("augment", ["none", "flip_crop"])
def test_what_an_epoch_draws_lies_in_pinned_memory(device, augment):
    """A GPU copies from it without the host waiting; from plain memory the host would wait at each epoch's start."""
    split = random_split((3, 8, 8), device, COUNT)
    for seeds in ([1], [1, 2]):
        drawn = split.draw(seeds, 0, augment)
        tensors = [drawn.order]
        if drawn.augmentation is not None:
            tensors += [drawn.augmentation.flip, drawn.augmentation.top, drawn.augmentation.left]
        assert len(tensors) == (4 if augment == "flip_crop" else 1)
        for tensor in tensors:
            assert tensor.device.type == "cpu"
            assert tensor.is_contiguous() or device.type == "cpu"
            assert device.type == "cpu" or tensor.is_pinned()
        try:
            debug(device, "error")
            copies = [to_device(tensor, device) for tensor in tensors]
            copies += [tensor.to(device, non_blocking=True) for tensor in tensors]
        finally:
            debug(device, "default")
        for copy, tensor in zip(copies, tensors * 2, strict=True):
            assert torch.equal(copy.cpu(), tensor)
