"""Arithmetic of epochs and optimizer steps, and the learning rate as a function of them."""

import math

__all__ = ["crop_side", "even_batch_size", "learning_rate", "steps_per_epoch"]


def steps_per_epoch(num_samples: int, batch_size: int, *, drop_last: bool = False) -> int:
    """Count the optimizer steps of one epoch.

    A last, smaller batch counts, unless `drop_last` leaves it out; the only batch of an epoch is never left out.
    """
    whole, rest = divmod(num_samples, batch_size)
    return whole + (rest > 0 and not (drop_last and whole > 0))


def even_batch_size(num_samples: int, most: int) -> int:
    """Return the largest size, at most `most`, of batches of which the last has no fewer than half as many samples.

    For whatever works with the statistics of each batch by itself: those of a few left-over samples are far off.
    """
    size = min(num_samples, most)
    while size > 1 and 0 < num_samples % size < size / 2:
        size -= 1
    return max(1, size)


def crop_side(epoch: int, *, total_epochs: int, first: int, last: int, ramp: tuple[float, float]) -> int:
    """Return the side in pixels of an epoch's training crops, which grow from `first` to `last` (progressive resizing).

    They are `first` until the first share `ramp[0]` of `total_epochs` is done, `last` from `ramp[1]` on, and between the two
    they grow linearly, in multiples of 32, the stride of the usual networks.
    """
    start, end = (share * total_epochs for share in ramp)
    if epoch >= end:
        return last
    grown = first + (last - first) * max(0.0, (epoch - start) / (end - start))
    return max(first, min(last, 32 * round(grown / 32)))


def learning_rate(
    step: int,
    *,
    total_steps: int,
    peak: float,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    decay_factor: float = 0.1,
    hold_steps: int = 1,
) -> float:
    """Return the learning rate of optimizer step `step` (0-based): linear warm-up to `peak`, then one cosine to 0.

    The cosine runs from `warmup_steps` to `total_steps`, where it would reach exactly 0; the paper names the cosine
    (section 4), and steps it once per step here. With `decay_steps` the rate falls to `decay_factor` of itself after every so
    many steps instead, counted from the start of the schedule (the paper's ImageNet). With `hold_steps` the rate changes only
    every so many steps: those of an epoch give torch's schedulers as they are used most. The warm-up does not wait.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    step -= step % hold_steps
    if decay_steps:
        return peak * decay_factor ** (step // decay_steps)
    progress = max(0, step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * progress))
