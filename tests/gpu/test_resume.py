"""A training that is stopped and continues, as after a preemption, ends with the bits of an undisturbed one."""

from contextlib import suppress

import pytest

from raylth.core.training.recipe import Recipe
from tests.gpu.trainings import assert_same_bits, run

RECIPE = Recipe(3, lr=0.05, batch_size=32, label_smoothing=0.1, drop_last=False)


class Stopped(Exception):
    pass


def whole_run(engine, name, device):
    """Train without a stop; skip what cannot be built here, which test_usable.py takes for a failure."""
    if engine in ("eager", "graph"):
        return run(name, engine, 2, device, RECIPE)
    if device.type == "cpu":
        pytest.skip(
            f"engine {engine!r}: on a CPU its compiler takes longer than these tests, or interprets in another process"
        )
    try:
        return run(name, engine, 2, device, RECIPE)
    except Exception as error:
        pytest.skip(f"engine {engine!r} cannot be used here: {type(error).__name__}: {str(error)[:300]}")


@pytest.mark.parametrize(
    ("engine", "name"),
    [("eager", "resnet20"), ("eager", "mlp"), ("graph", "resnet20"), ("graph", "attention"), ("compiled", "small"),
     ("stacked", "small")],
)  # fmt: skip
def test_a_resumed_training_has_the_same_bits(device, engine, name):
    """Two members, stopped in the middle of an epoch, before its ragged batch, and between epochs: no tolerance.

    It fails where something lies in a process and not in a state (a generator, a graph's buffers, what a warm-up changed),
    or where a kernel adds in an order that changes from run to run.
    """
    _, whole, losses = whole_run(engine, name, device)
    for stop_at in ((1, 1), (1, 2), (2, 0)):
        states = []

        def stop(epochs, step, snapshots, stop_at=stop_at, states=states):
            if (epochs, step) == stop_at:
                states.extend(snapshots())
                raise Stopped

        with suppress(Stopped):
            run(name, engine, 2, device, RECIPE, on_step=stop)
        assert len(states) == 2, "not stopped"
        _, resumed, again = run(name, engine, 2, device, RECIPE, states=states)
        assert_same_bits(whole, resumed)
        assert again == losses, stop_at
