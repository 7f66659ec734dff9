"""A whole training step of all members as one CUDA graph."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from raylth.core.training.packing import Program
from raylth.core.training.recipe import Recipe
from raylth.core.training.step import Masks, Step, Steps

__all__ = ["STREAMS", "CapturedSteps", "StepMaker"]

STREAMS = 4  # on which the members' branches run
WARM_UPS = 3  # steps before a capture: libraries load, kernels compile, the allocator settles

StepMaker = Callable[[Program, Recipe, Masks, torch.device], Step]


@dataclass
class Buffers:
    """What a captured step of batches of one size reads and writes: member after member."""

    x: Tensor  # (K * B, *in_shape)
    y: Tensor  # (K * B,)
    losses: Tensor  # (K,)
    graph: "torch.cuda.CUDAGraph | None" = None


class CapturedSteps(Steps):
    """The steps of several programs, captured once for each size of batch and replayed from then on.

    Inputs, labels, learning rate and losses lie in static buffers. The branches of the graph run on `streams` streams.
    The warm-up before a capture leaves no trace: parameters, statistics, momentum and random numbers are put back. On a
    device that has no graphs the steps run anew at each call, on the same buffers.
    """

    by_member = True

    def __init__(
        self,
        parts: Sequence[Program],
        recipe: Recipe,
        masks: Masks,
        device: torch.device,
        make_step: StepMaker,
        streams: int = STREAMS,
    ) -> None:
        self.steps, first = [], 0
        for part in parts:
            self.steps.append(make_step(part, recipe, masks[first : first + part.size], device))
            first += part.size
        self.size, self.device = first, device
        self.captures = device.type == "cuda"
        self.rate = torch.zeros((), device=device, dtype=torch.float32 if self.captures else torch.float64)
        self.held: dict[tuple[int, ...], Buffers] = {}  # samples of a member's batch, and a sample's shape -> buffers
        self.in_shape: tuple[int, ...] = ()
        self.streams = streams_of(device, min(streams, len(parts))) if self.captures else []
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None

    def place(self, count: int) -> tuple[Tensor, Tensor] | None:
        """Return the static buffers for batches of `count` samples a member; None until one batch has shown their shape."""
        if not self.in_shape:
            return None
        held = self._buffers(count)
        return held.x, held.y

    def __call__(self, x: Tensor, y: Tensor, rate: float, count: int) -> Tensor:
        """Take a step of every member; returns their mean losses (K,), which the next step overwrites."""
        self.in_shape = tuple(x.shape[1:])
        held = self._buffers(count)
        if x is not held.x:
            held.x.copy_(x)
            held.y.copy_(y)
        self.rate.fill_(rate)
        if self.captures and held.graph is None:
            held.graph = self._captured(held)
        if held.graph is None:
            self._run(held)
        else:
            held.graph.replay()
        return held.losses

    def _buffers(self, count: int) -> Buffers:
        key = (count, *self.in_shape)  # crops may grow from one epoch to another
        if key not in self.held:
            layout = torch.channels_last if len(self.in_shape) == 3 else torch.contiguous_format
            x = torch.empty(self.size * count, *self.in_shape, device=self.device).contiguous(memory_format=layout)
            y = torch.empty(self.size * count, device=self.device, dtype=torch.int64)
            self.held[key] = Buffers(x, y, torch.empty(self.size, device=self.device))
        return self.held[key]

    def _run(self, held: Buffers) -> None:
        """Take the steps, each program's on its stream; also after an error all streams are joined again."""
        count, first = len(held.y) // self.size, 0
        with self._forked():
            for number, step in enumerate(self.steps):
                own = slice(first, first + step.program.size)
                first = own.stop
                batch = slice(own.start * count, own.stop * count)
                stream = self.streams[number % len(self.streams)] if self.captures else None
                with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
                    held.losses[own] = step(held.x[batch], held.y[batch], self.rate, count)

    @contextlib.contextmanager
    def _forked(self) -> Iterator[None]:
        """Let the streams begin after what the current one was given, and it continue after all of them."""
        main = torch.cuda.current_stream(self.device) if self.captures else None
        for stream in self.streams:
            stream.wait_stream(main)  # type: ignore[arg-type]  # there are streams only where there is one
        try:
            yield
        finally:
            for stream in self.streams:
                main.wait_stream(stream)  # type: ignore[union-attr]

    def _captured(self, held: Buffers) -> "torch.cuda.CUDAGraph":
        state = [tensor for step in self.steps for tensor in _state(step)]
        before, drawn = [tensor.clone() for tensor in state], torch.cuda.get_rng_state(self.device)
        main, (beside,) = torch.cuda.current_stream(self.device), streams_of(self.device, 1, "warm-up")
        beside.wait_stream(main)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self._run(held)
        main.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        for step in self.steps:
            step.optimizer.zero_grad()  # a capture's gradients lie in the graph's own memory
        failed: Exception | None = None
        # A thread that pins memory for the next epoch's draws must not end the capture: hence its mode.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            try:
                self._run(held)
            except Exception as error:  # raised after the capture's end: an open one would leave the process unusable
                failed = error
        with torch.no_grad():
            torch._foreach_copy_(state, before)
        torch.cuda.set_rng_state(drawn, self.device)
        if failed is not None:
            raise failed
        return graph


@cache
def streams_of(device: torch.device, count: int, use: str = "branches") -> "list[torch.cuda.Stream]":
    """Return streams of this process for a use: always the same, since cuBLAS keeps memory for each that it has seen."""
    return [torch.cuda.Stream(device) for _ in range(count)]


def _state(step: Step) -> list[Tensor]:
    """Return all that a step changes."""
    network, optimizer = step.program.network, step.optimizer
    return [*(p.detach() for p in network.parameters()), *network.buffers(), *optimizer.buffers.values()]
