"""How many networks are trained fastest as one program, measured on the spot."""

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from raylth.core.data.dataset import Split
from raylth.core.pack import NotPackable, Program
from raylth.core.train import Recipe, train_together

__all__ = ["fastest_pack"]

SIZES = (1, 2, 4, 8, 16, 32)
STEPS = 4  # of one measurement, an epoch, after one that warms up
SHORTEST, FEWEST = 0.08, 3  # seconds, and epochs, of measuring a size
MOST = 10_000  # epochs, which nothing reaches
LONGEST = 30.0  # seconds of measuring in all, as far as can be foreseen
WORTH = 1.02  # a larger pack must be that much faster
SLOWER = 0.8  # than the best so far, twice running (once may be by chance): larger ones are not tried


def fastest_pack(
    build: Callable[[], nn.Module], split: Split, recipe: Recipe, augment: str = "none"
) -> tuple[int, dict[int, float]]:
    """Return the size of the fastest pack of a network, and the samples per second of all members by size.

    A few steps of each size are trained on the first samples of `split`; sizes double until they bring nothing, do not fit
    in memory, or measuring on would take long. 1 for what cannot be packed.
    """
    steps = replace(
        recipe,
        epochs=MOST,
        schedule_epochs=None,
        schedule_start=0,
        warmup_epochs=0,
        first_resolution=None,
        unsynced_workers=0,
    )
    seconds: dict[int, float] = {}
    samples = split.take(STEPS * recipe.batch_size)
    rates: dict[int, float] = {}
    best, slower, start = 1, 0, time.perf_counter()
    for size in SIZES:
        if 2 * seconds.get(size // 2, 0.0) * (1 + FEWEST) > LONGEST - (time.perf_counter() - start):
            break
        try:
            program = Program([build() for _ in range(size)])
            seconds[size] = _time(program, samples, steps, augment)
        except (NotPackable, torch.cuda.OutOfMemoryError):
            break
        rates[size] = size * len(samples) / seconds[size]
        if rates[size] > WORTH * rates[best]:
            best = size
        slower = slower + 1 if rates[size] < SLOWER * rates[best] else 0
        if slower == 2:
            break
    return best, rates


class _Measured(Exception):  # the end of a training, no error
    """Enough was measured."""


def _time(program: Program, samples: Split, recipe: Recipe, augment: str) -> float:
    """Return the seconds of one epoch over the samples: the least of as many as fill a moment, since others only add.

    The first one warms up, and setting a training up is not counted: it grows with the pack, and is done once.
    """
    start = time.perf_counter()
    ends: list[float] = []

    def on_epoch(completed: int, losses: list[float]) -> None:  # the device has done what it was asked to: it told the losses
        ends.append(time.perf_counter())
        is_slow = ends[0] - start > LONGEST / 8  # one step takes seconds: nothing is gained by packing what fills the machine
        if is_slow or (len(ends) > FEWEST and ends[-1] - ends[0] >= SHORTEST):
            raise _Measured

    with contextlib.suppress(_Measured):
        train_together(
            program, samples, recipe, seeds=list(range(program.size)), augment=augment, masks=[None] * program.size,
            on_epoch=on_epoch,
        )  # fmt: skip
    if len(ends) < 2:  # slow, or all diverged at once
        return time.perf_counter() - start
    return min(end - before for before, end in itertools.pairwise(ends))
