"""Kernels against float64 on random shapes: `python -m tests.core.training.engines.checks conv [cpu|cuda] [rounds]`.

On "cpu" Triton interprets the kernels, which has to be settled before its first import: hence a process of its own. All that
the launchers allocate is filled with NaN, so that an element that is never written is seen, and has a margin, as inputs have,
so that one beside it that is read or written is seen too. Only float32: the interpreter's bfloat16 products are wrong (triton
#11584).
"""

import itertools
import os
import random
import sys
from types import ModuleType

import torch
import torch.nn.functional as F

BOUND = 1e-5
MARGIN = 64


class Bench:
    """Random numbers, tensors with margins, and the comparison."""

    def __init__(self, launch: ModuleType, device: str) -> None:
        self.launch, self.device = launch, device
        self.random = random.Random(0)
        self.generator = torch.Generator().manual_seed(0)
        self.buffers: list[torch.Tensor] = []
        self.worst: dict[str, float] = {}
        launch.EMPTY = self.empty
        self.rules = (launch.conv_blocks, launch.weight_blocks, launch.norm_blocks, launch.shares)

    def empty(self, shape, *, dtype, device):
        size = torch.Size(shape).numel()
        self.buffers.append(torch.full((size + 2 * MARGIN,), float("nan"), dtype=dtype, device=device))
        return self.buffers[-1][MARGIN : MARGIN + size].view(shape)

    def normal(self, *shape, scale=1.0, shift=0.0, needs_grad=False):
        values = torch.randn(shape, generator=self.generator) * scale + shift
        tensor = self.empty(shape, dtype=torch.float32, device=self.device).copy_(values)
        return tensor.requires_grad_(needs_grad)

    def blocks(self, *, own: bool) -> None:
        """Let the launchers use their own blocks, or small ones, so that small shapes have several."""
        launch, choose = self.launch, self.random.choice
        launch.conv_blocks, launch.weight_blocks, launch.norm_blocks, launch.shares = self.rules
        if not own:
            launch.conv_blocks = lambda rows, columns, channels, taps, _: launch.Blocks(
                choose((32, 64)), choose((16, 32)), choose([k for k in (16, 32, 64, 128) if k * 8 >= channels * taps])
            )
            launch.weight_blocks = lambda columns, depth, _: launch.Blocks(
                choose((16, 32)), choose((16, 32)), choose([k for k in (16, 32, 64, 128) if k * 4 >= depth])
            )
            launch.norm_blocks = lambda *_: launch.Blocks(choose((16, 32)), choose((8, 32)))
            launch.shares = lambda rows, step, *_: self.rules[3](rows, step, step * choose((1, 2)), 64)

    def agree(self, what: str, found, wanted, shape) -> None:
        found, wanted = found.detach().double().cpu(), wanted.detach()
        error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
        assert error <= BOUND, f"{what}: error {error:.2e} at {shape}"
        self.worst[what] = max(self.worst.get(what, 0.0), error)

    def margins(self, shape) -> None:
        for buffer in self.buffers:
            assert torch.cat([buffer[:MARGIN], buffer[-MARGIN:]]).isnan().all(), f"written beside a tensor at {shape}"
        self.buffers.clear()


def conv_shapes(bench: Bench, rounds: int):
    """Members, batch, size, channels in and out, kernel, stride, padding: kernels and strides in all combinations."""
    choose = bench.random.choice
    kinds = itertools.product(((1, 1), (3, 3), (5, 3)), ((1, 1), (2, 2), (1, 2)))
    for kernel, stride in kinds:
        for again in range(rounds):
            size = (bench.random.randint(5, 7), bench.random.randint(3, 7))
            inputs = (3, 16, 8)[again] if again < 3 else choose((1, 5, 20, 32) if max(kernel) < 5 else (1, 5, 8, 16))
            padding = (bench.random.randint(0, 2), bench.random.randint(0, 2))
            members = choose((1, 1, 2, 2, 3, 4))
            yield members, choose((1, 2, 3)), size, inputs, choose((1, 5, 8, 16, 24)), kernel, stride, padding


def conv(bench: Bench, ops: ModuleType, rounds: int) -> int:
    """Convolutions: outputs, moments, gradients of input and weight."""
    count = 0
    for shape in conv_shapes(bench, rounds):
        members, batch, size, inputs, outputs, kernel, stride, padding = shape
        bench.blocks(own=count % 6 == 0)
        first = count % 14 == 13  # a first layer: no gradient of the input
        x = bench.normal(members, batch, *size, inputs, shift=0.3, needs_grad=not first)
        weight = bench.normal(members, outputs, *kernel, inputs, shift=0.2, needs_grad=True)
        y, mean, var = ops.conv2d(x, weight, stride=stride, padding=padding, moments=True)
        assert (mean.requires_grad, var.requires_grad) == (False, False)
        grad = bench.normal(*y.shape)
        y.backward(grad)
        assert first == (x.grad is None)

        wide_x = x.detach().double().cpu().requires_grad_()
        wide_weight = weight.detach().double().cpu().requires_grad_()
        wide = torch.stack([
            F.conv2d(one.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), None, stride, padding).permute(0, 2, 3, 1)
            for one, w in zip(wide_x, wide_weight, strict=True)
        ])  # fmt: skip
        wide.backward(grad.double().cpu())
        bench.agree("convolution", y, wide, shape)
        stored = y.detach().double().cpu().flatten(1, 3)
        bench.agree("mean beside a convolution", mean, stored.mean(1), shape)
        bench.agree("variance beside a convolution", var, stored.var(1, correction=0), shape)
        if not first:
            bench.agree("gradient of a convolution's input", x.grad, wide_x.grad, shape)
        bench.agree("gradient of a convolution's weight", weight.grad, wide_weight.grad, shape)
        bench.margins(shape)
        count += 1
    return count


def moments(bench: Bench, ops: ModuleType, rounds: int) -> int:
    """Moments, with means up to 100 times the deviation."""
    for count in range(9 * rounds):
        members, rows, channels = (
            bench.random.choice((1, 1, 2, 3, 4)),
            bench.random.choice((1, *range(8, 100))),
            bench.random.randint(1, 20),
        )
        bench.blocks(own=count % 4 == 0)
        y = bench.normal(members, rows, channels, scale=0.1, shift=bench.random.choice((0.5, 10.0)))
        mean, var = ops.moments(y)
        wide = y.double().cpu()
        bench.agree("mean", mean, wide.mean(1), tuple(y.shape))
        bench.agree("variance", var, wide.var(1, correction=0), tuple(y.shape))
        bench.margins(tuple(y.shape))
    return 9 * rounds


def norm(bench: Bench, ops: ModuleType, rounds: int) -> int:
    """Batch norms with and without residual and ReLU: outputs and all gradients."""
    for count in range(9 * rounds):
        members, batch, size = bench.random.choice((1, 1, 2, 3, 4)), bench.random.choice((1, 2)), bench.random.randint(4, 6)
        channels = bench.random.choice((1, 3, 8, 16, 20))
        added, relu = bool(count // 4 % 2), bool(count // 8 % 2)
        shape = (members, batch, size, size - 1, channels)
        bench.blocks(own=count % 4 == 0)
        y = bench.normal(*shape, scale=0.7, shift=0.5, needs_grad=True)
        weight, bias = (bench.normal(members, channels, shift=1.0, needs_grad=True) for _ in range(2))
        residual = bench.normal(*shape, needs_grad=True) if added else None
        mean, var = ops.moments(y)
        z = ops.norm(y, mean, var, weight, bias, residual, eps=1e-3, relu=relu)
        grad = bench.normal(*shape, shift=0.3)
        z.backward(grad)

        leaves = (y, weight, bias, residual)
        inputs = [None if one is None else one.detach().double().cpu().requires_grad_() for one in leaves]
        wide_y, wide_weight, wide_bias, wide_residual = inputs
        var, mean = torch.var_mean(wide_y, (1, 2, 3), correction=0, keepdim=True)
        spread = [one.view(members, 1, 1, 1, channels) for one in (wide_weight, wide_bias)]
        wide = (wide_y - mean) * (var + 1e-3).rsqrt() * spread[0] + spread[1]
        wide = wide if wide_residual is None else wide + wide_residual
        # The kernel's own mask: where the float64 value is within rounding of 0, either side is right.
        (wide * (z.detach().cpu() > 0) if relu else wide).backward(grad.double().cpu())
        bench.agree("norm", z, wide.relu() if relu else wide, shape)
        names = ("y", "weight", "bias", "residual")
        for name, found, wanted in zip(names, leaves, inputs, strict=True):
            if found is not None:
                bench.agree(f"gradient of a norm's {name}", found.grad, wanted.grad, shape)
        bench.margins(shape)
    return 9 * rounds


def alone(bench: Bench, ops: ModuleType, rounds: int) -> int:
    """A member has the same bits alone and beside others."""
    for inputs, outputs, stride in ((3, 16, 1), (16, 20, 2)):
        x, weight = bench.normal(2, 3, 6, 5, inputs), bench.normal(2, outputs, 3, 3, inputs)
        scale, bias = bench.normal(2, outputs), bench.normal(2, outputs)
        grad = bench.normal(2, 3, -(-6 // stride), -(-5 // stride), outputs)

        def step(*own, stride=stride):
            x, weight, scale, bias = (one.clone().requires_grad_() for one in own[:4])
            y, mean, var = ops.conv2d(x, weight, stride=(stride, stride), padding=(1, 1), moments=True)
            z = ops.norm(y, mean, var, scale, bias, eps=1e-5, relu=True)
            z.backward(own[4])
            return z, x.grad, weight.grad, scale.grad, bias.grad

        everything = (x, weight, scale, bias, grad)
        together = step(*everything)
        for member in range(2):
            for found, wanted in zip(step(*(one[member : member + 1] for one in everything)), together, strict=True):
                assert torch.equal(found[0], wanted[member]), f"member {member} of {tuple(x.shape)}"
    return 2


def set_interpreter_up() -> None:
    """Make Triton's interpreter faster, and Triton 3.6's work with numpy 2.5."""
    from triton.runtime import interpreter

    # Checks for integer overflow on every sum take half of the time.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    patch = interpreter._patch_lang_tensor

    def patch_and_index(tensor, scope):
        patch(tensor, scope)  # 3.6's bounds of loops are arrays of one element, which numpy 2.5 takes for no integer
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_and_index


def main(name: str, device: str = "cpu", rounds: str = "6") -> None:
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from raylth.core.training.engines import launch, stacked_ops

    if device == "cpu":
        set_interpreter_up()
    torch.set_num_threads(1)
    bench = Bench(launch, device)
    count = {"conv": conv, "moments": moments, "norm": norm, "alone": alone}[name](bench, stacked_ops, int(rounds))
    print(f"{count} shapes, largest errors:", {what: f"{error:.1e}" for what, error in bench.worst.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
