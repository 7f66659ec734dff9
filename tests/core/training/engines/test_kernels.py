"""The kernels, interpreted against float64, and compiled for a card that need not be there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from raylth.core.training.engines import launch, stacked_ops
from raylth.core.training.engines.compiling import compile_for

ROOT = Path(__file__).resolve().parents[4]
PRODUCTS = ("conv", "input_gradient", "weight_gradient")
MATRIX = re.compile(r"wgmma\.mma_async|mma\.sync")
WIDE_LOAD = re.compile(r"ld\.global(\.\w+)*\.v4\.b32|cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (0x10|16)\b")


@pytest.mark.parametrize("check", ["conv", "moments", "norm", "alone"])
def test_kernels_agree_with_float64(check):
    command = [sys.executable, "-m", "tests.core.training.engines.checks", check]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("check", ["alone", "fixed", "resumed", "proved"])
def test_stacked_networks_are_trained_as_they_would_be_alone(check):
    command = [sys.executable, "-m", "tests.core.training.engines.stacked_checks", check]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def on_meta(*shape, dtype=torch.float32, needs_grad=False):
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=needs_grad)


def layer(dtype, inputs, outputs, *, stride=1, norm=False):
    """Forward and backward of a convolution, and of a norm after it, on tensors without storage."""
    x = on_meta(2, 128, 32, 32, inputs, dtype=dtype, needs_grad=inputs > 3)
    weight = on_meta(2, outputs, 3, 3, inputs, needs_grad=True)
    scale, bias = (on_meta(2, outputs, needs_grad=True) for _ in range(2))

    def call():
        out, mean, var = stacked_ops.conv2d(x, weight, stride=(stride, stride), padding=(1, 1), moments=True)
        assert (out.shape, out.dtype) == ((2, 128, 32 // stride, 32 // stride, outputs), dtype)
        assert (mean.shape, mean.dtype, var.dtype) == ((2, outputs), torch.float32, torch.float32)
        if norm:
            residual = on_meta(*out.shape, dtype=dtype, needs_grad=True)
            out = stacked_ops.norm(out, mean, var, scale, bias, residual, eps=1e-5, relu=True)
            stacked_ops.moments(out)
        out.backward(torch.empty_like(out))
        assert weight.grad.dtype == torch.float32

    return call


def test_bfloat16_uses_matrix_instructions_and_wide_loads(cache):
    compiled = compile_for(layer(torch.bfloat16, 64, 64, norm=True))
    norms = {"merge_moments", "tile_moments", "norm", "norm_sums", "norm_gradient"}
    assert set(compiled) == {*PRODUCTS, *norms}
    assert "wgmma.mma_async" in compiled["conv"].ptx
    for name, (ptx, shared) in compiled.items():
        assert WIDE_LOAD.search(ptx), name
        assert MATRIX.search(ptx) or name in norms, name
        assert shared <= 100_000, name
        assert not re.search(r"\b(atom|red)\.", ptx), name


def test_few_channels_and_strides_keep_matrix_instructions(cache):
    for inputs, outputs, stride in ((16, 32, 2), (3, 16, 1)):
        compiled = compile_for(layer(torch.bfloat16, inputs, outputs, stride=stride))
        assert ("input_gradient" in compiled) == (inputs > 3)
        for name in set(compiled) & set(PRODUCTS):
            assert MATRIX.search(compiled[name].ptx), (name, inputs)
            assert inputs == 3 or WIDE_LOAD.search(compiled[name].ptx), name


def test_float32_is_never_rounded_to_tf32(cache):
    compiled = compile_for(layer(torch.float32, 16, 16, norm=True))
    for name, (ptx, shared) in compiled.items():
        assert "tf32" not in ptx, name
        assert WIDE_LOAD.search(ptx), name
        assert shared <= 100_000, name
    assert all("fma.rn.f32" in compiled[name].ptx for name in PRODUCTS)


def test_what_the_kernels_cannot_do_is_an_error():
    x, weight = on_meta(2, 3, 8, 8, 16), on_meta(2, 4, 3, 3, 16)
    for wrong in (on_meta(2, 4, 3, 3, 8), on_meta(1, 4, 3, 3, 16), on_meta(2, 4, 3, 16), on_meta(2, 4, 9, 3, 16)):
        with pytest.raises(ValueError, match=r"do not fit|no output"):
            stacked_ops.conv2d(x, wrong)
    with pytest.raises(ValueError, match="stride"):
        stacked_ops.conv2d(x, weight, stride=(0, 1))
    with pytest.raises(ValueError, match="elements a member"):
        stacked_ops.conv2d(on_meta(1, 2**20, 32, 32, 16), on_meta(1, 16, 3, 3, 16))
    with pytest.raises(ValueError, match="neither float32 nor bfloat16"):
        stacked_ops.conv2d(x.half(), weight)
    part = on_meta(2, 16)
    with pytest.raises(ValueError, match="must be float32"):
        stacked_ops.norm(x, part, part, part, on_meta(2, 8), eps=1e-5)
    with pytest.raises(ValueError, match="a residual"):
        stacked_ops.norm(x, part, part, part, part, on_meta(2, 3, 8, 8, 8), eps=1e-5)


def test_shares_cover_all_rows():
    for rows in (1, 63, 64, 2048, 2049, 8192, 401_408, 1_605_632):
        count, share = launch.shares(rows, 64, 2048, 64)
        assert (count - 1) * share < rows <= count * share
        assert share % 64 == 0
        assert count <= 64
