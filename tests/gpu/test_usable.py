"""The engines are proved for a ResNet-20, and their kernels agree with float64.

On a GPU each check is a process that conftest.py starts with the session: compilers take their time beside the other tests.
"""

import pytest

from tests.gpu import apart


@pytest.mark.parametrize("check", ["conv", "moments", "norm", "alone"])
def test_kernels_agree_with_float64(device, jobs, check):
    """`tests.core.training.engines.checks` on the card, one round: errors below 1e-5, nothing else written."""
    if device.type == "cpu":
        pytest.skip("tests/core/engines/test_kernels.py interprets them on a CPU")
    print(jobs.output(f"kernels {check}"))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("engine", ["graph", "stacked", "compiled"])
def test_an_engine_is_proved_without_a_note(device, jobs, engine, precision, capsys):
    """ResNet-20 (w = 1, 32 px, batch 128; on a CPU w = 1/4, 8 px): `usable` gives the engine that was asked for.

    It fails where an engine cannot be built, raises, or leaves the plain loop by more than the proof allows. The figures are
    printed: the distance from the plain loop, the bound, and whether the bits are the plain loop's.
    """
    if device.type == "cuda":
        print(jobs.output(f"proof {engine} {precision}"))
        return
    if engine != "graph":
        pytest.skip("on a CPU its compiler takes longer than these tests, or interprets in a process of its own")
    apart.proved(device, engine, precision)
    assert "error=" in capsys.readouterr().out
