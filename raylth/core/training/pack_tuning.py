"""How many networks are trained fastest as one program, and by which engine, measured on the spot."""

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from raylth.core.data.dataset import Split
from raylth.core.memory import is_out_of_memory, release_memory
from raylth.core.training.engine_proof import usable
from raylth.core.training.engines.program import EngineName, make_program
from raylth.core.training.loop import evaluate_together, evaluation_batch, train_together
from raylth.core.training.packing import NotPackable, Program
from raylth.core.training.recipe import Recipe
from raylth.core.training.schedule import steps_per_epoch

__all__ = ["SIZES", "Fastest", "fastest_pack"]

SIZES = (1, 2, 4, 8, 16, 32)
STEPS = 4  # of one measurement, an epoch, after one that warms up
STEPS_ON_GPU = 50  # there the host works between two epochs, which is little beside an epoch of a training
SHORTEST, FEWEST = 0.08, 3  # seconds, and epochs, of measuring a size
MOST = 10_000  # epochs, which nothing reaches
LONGEST = 30.0  # seconds of measuring in all, as far as can be foreseen
WORTH = 1.02  # a larger pack must be that much faster
WORTH_OF_ENGINE = 1.05  # another engine
SLOWER = 0.8  # than the best so far, twice running (once may be by chance): larger ones are not tried


@dataclass(frozen=True)
class Fastest:
    """How networks of a kind are trained fastest: how many together, by which engine; and what was measured."""

    size: int
    engine: EngineName = "eager"
    rates: Mapping[EngineName, Mapping[int, float]] = field(default_factory=dict)  # engine -> size -> samples per second
    notes: Sequence[str] = ()  # a line for each engine that was passed over


def fastest_pack(
    build: Callable[[], nn.Module],
    split: Split,
    recipe: Recipe,
    augment: str = "none",
    *,
    engines: Sequence[EngineName] = ("eager",),
    sizes: Sequence[int] = SIZES,
) -> Fastest:
    """Find with which engine, and in packs of which of the `sizes`, a network is trained fastest here.

    Each engine is proved first. A few steps of each size are trained on samples of `split`, and a batch is
    evaluated, so that what does not fit in memory is met here; sizes grow until they gain nothing, do not fit, or measuring
    on would take long. What cannot be packed has size 1. An engine must be 5 % faster than those before it; where only one is
    asked for, and it is not proved, the one that it falls back to is measured.
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
    count = STEPS_ON_GPU if split.y.device.type == "cuda" else STEPS
    count = min(count, steps_per_epoch(len(split), recipe.batch_size, drop_last=recipe.drop_last))
    samples = split.take(min(len(split), count * recipe.batch_size))
    rates: dict[EngineName, dict[int, float]] = {}
    notes: list[str] = []
    best, fastest = Fastest(1), 0.0
    for engine in engines:
        if engine != "eager":
            try:
                found, passed_over = usable(engine, [build() for _ in range(2)], recipe, split.in_shape)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                release_memory(error)
                found, passed_over = "eager", [f"engine {engine!r} cannot be used: out of memory while it was verified"]
            notes += passed_over[:1]
            if found != engine and len(engines) > 1:
                continue
            engine = found
        size, rates[engine] = _fastest_size(engine, build, samples, steps, augment, sizes, notes)
        if rates[engine].get(size, 0.0) > fastest * (WORTH_OF_ENGINE if fastest else 1.0):
            best, fastest = Fastest(size, engine), rates[engine][size]
    return replace(best, rates=rates, notes=tuple(notes))


def _fastest_size(
    engine: EngineName,
    build: Callable[[], nn.Module],
    samples: Split,
    recipe: Recipe,
    augment: str,
    sizes: Sequence[int],
    notes: list[str],
) -> tuple[int, dict[int, float]]:
    """Return the size of an engine's fastest pack, and the samples per second of all members by size.

    Where not even the first size fits in memory, its half is tried, and so on.
    """
    seconds: dict[int, float] = {}
    rates: dict[int, float] = {}
    best, slower, start = 1, 0, time.perf_counter()
    waiting = list(sizes)
    while waiting:
        size = waiting.pop(0)
        before = max((each for each in seconds if each < size), default=size)
        if size / before * seconds.get(before, 0.0) * (1 + FEWEST) > LONGEST - (time.perf_counter() - start):
            break
        try:
            program = make_program([build() for _ in range(size)], engine)
            seconds[size] = _time(program, samples, recipe, augment)
            evaluate_together(program, samples.take(min(len(samples), evaluation_batch(samples, size))))
        except NotPackable:
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            seconds.pop(size, None)
            release_memory(error)
            if rates or size == 1:
                break
            notes.append(f"a pack of {size} ran out of memory with the engine {engine!r} while it was measured")
            waiting = [size // 2]
            continue
        rates[size] = size * len(samples) / seconds[size]
        if best not in rates or rates[size] > WORTH * rates[best]:
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

    def on_epoch(completed: int, losses: list[float]) -> None:  # the losses were read, so the device has finished its work
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
