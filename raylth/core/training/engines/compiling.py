"""Compile the kernels for a GPU that this machine need not have, to see what the compiler makes of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from raylth.core.training.engines import launch
from raylth.core.training.engines.launch import Blocks

__all__ = ["Compiled", "compile_for"]

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}


class Compiled(NamedTuple):
    """A kernel's assembly (PTX) and the shared memory of one of its blocks, in bytes."""

    ptx: str
    shared: int


def compile_for(call: Callable[[], object], arch: int = 90) -> dict[str, Compiled]:
    """Compile for a CUDA architecture what a call would start, by launch name; the call's tensors are on the device "meta".

    Pointers are taken to be multiples of 16 bytes, as those of whole tensors are. A name started twice keeps its last form.
    """
    found: dict[str, Compiled] = {}

    def compile_one(
        name: str, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: tuple[Any, ...], blocks: Blocks
    ) -> None:
        signature, fixed, attributes = {}, {}, {}
        for place, (key, value) in enumerate(zip(kernel.arg_names, (*arguments, *constants), strict=True)):
            if value is None or place >= len(arguments):
                signature[key], fixed[(place,)] = "constexpr", value
            elif isinstance(value, Tensor):
                signature[key], attributes[(place,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
            else:
                signature[key] = "i32"
        source = ASTSource(kernel, signature, fixed, attributes)
        result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=blocks.options)
        found[name] = Compiled(result.asm["ptx"], result.metadata.shared)

    started, launch.run = launch.run, compile_one
    try:
        call()
    finally:
        launch.run = started
    return found
