"""Arithmetic of epochs and optimizer steps, and the learning rate as a function of them."""

import math

__all__ = ["crop_side", "learning_rate", "steps_per_epoch"]


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Count the optimizer steps of one epoch; the last, smaller batch counts too."""
    return -(-num_samples // batch_size)


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
    step: int, *, total_steps: int, peak: float, warmup_steps: int = 0, decay_steps: int = 0, decay_factor: float = 0.1
) -> float:
    """Return the learning rate of optimizer step `step` (0-based): linear warm-up to `peak`, then one cosine to 0.

    The cosine runs from `warmup_steps` to `total_steps`, where it would reach exactly 0; the paper names the cosine
    (section 4), and steps it once per step here. With `decay_steps` the rate falls to `decay_factor` of itself after every so
    many steps instead, counted from the start of the schedule (the paper's ImageNet).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if decay_steps:
        return peak * decay_factor ** (step // decay_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * progress))
