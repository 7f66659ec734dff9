"""What an epoch draws is drawn one epoch ahead, and is what it would be if it were drawn at once."""

import threading

import pytest
import torch

from raylth.core.data import prefetch as module
from raylth.core.data.prefetch import Ahead
from tests.core.training.test_loop import random_split


def test_the_next_epoch_is_drawn_while_this_one_is_used():
    drawn, may_continue = [], threading.Event()

    def draw(epoch):
        if epoch == 4:
            assert may_continue.wait(30)
        drawn.append((epoch, threading.current_thread() is threading.main_thread()))
        return epoch * 10

    ahead = Ahead(draw, last=5, threaded=True)
    assert ahead(3) == 30
    assert drawn == [(3, True)], "the caller does not wait for the next one"
    may_continue.set()
    assert [ahead(4), ahead(5)] == [40, 50]
    assert drawn == [(3, True), (4, False), (5, False)], "and none is drawn beyond the last"
    assert ahead(4) == 40, "one that was not expected is drawn at once"


def test_without_a_thread_nothing_is_drawn_before_it_is_asked_for():
    drawn = []
    ahead = Ahead(lambda epoch: drawn.append(epoch) or epoch, last=5, threaded=False)
    assert [ahead(0), ahead(1)] == [0, 1]
    assert drawn == [0, 1]


def test_an_error_is_raised_when_its_epoch_is_asked_for():
    ahead = Ahead(lambda epoch: 1 // (1 - epoch), last=2, threaded=True)
    assert ahead(0) == 1
    with pytest.raises(ZeroDivisionError):
        ahead(1)


@pytest.mark.parametrize("augment", ["none", "flip_crop"])
@pytest.mark.parametrize("by_member", [False, True])
def test_an_epoch_that_was_drawn_ahead_is_the_same(augment, by_member):
    """For any number of members, from any step on; by member or sample by sample, each meets the same samples."""
    split = random_split((3, 8, 8), 50)
    seeds = [3, 4, 5]
    drawn = split.draw(seeds, 2, augment)
    options = {"augment": augment, "first": 1, "by_member": by_member}
    at_once, later = (list(split.epoch(seeds, 2, 16, **options, **more)) for more in ({}, {"drawn": drawn}))
    assert len(at_once) == 3
    for (x, y), (other_x, other_y) in zip(at_once, later, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    for number, seed in enumerate(seeds):
        for (x, y), (own_x, own_y) in zip(at_once, split.epoch([seed], 2, 16, augment=augment, first=1), strict=True):
            mine = slice(number * len(own_y), (number + 1) * len(own_y)) if by_member else slice(number, None, 3)
            assert torch.equal(x[mine], own_x)
            assert torch.equal(y[mine], own_y)


def test_what_is_copied_to_a_gpu_is_pinned_and_not_waited_for(monkeypatch):
    """With a stand-in for a tensor: there is no GPU to pin memory for."""
    asked = []

    class Host:
        def pin_memory(self):
            asked.append("pin")
            return self

        def to(self, device, *, non_blocking=False):
            asked.append((device.type, non_blocking))

    module.to_device(Host(), torch.device("cuda"))
    module.to_device(Host(), torch.device("cpu"))
    assert asked == ["pin", ("cuda", True), ("cpu", True)]
